// Row sums of the loss: the denominator, the positives' similarities and their number. A tile (I, J)
// is computed once and serves the rows of I (summed along the rows) and those of J (down the columns).
#pragma once
#include "statistics.h"
#include "tile.h"

namespace {

constexpr int kGroup = 4;  // rows whose sums stay in registers

template <class V>
struct Sums {
  typename V::Reg exp = V::broadcast(0), positives = exp, count = exp;
};

// One group of kGroup rows; `rows` (kGroup) and `columns` (kTile / kLanes) are running sums.
template <class V, int option>
void add_sums(const Pairs<typename V::Scalar>& p, const Tile<typename V::Scalar>& tile, int64_t row,
              const typename V::Scalar* s, Sums<V>* rows, Sums<V>* columns) {
  using T = typename V::Scalar;
  constexpr bool positives = option & kPositives, negatives_only = option & kNegativesOnly,
                 own_shift = option & kOwnShift, masked = option & kMasked;
  Sums<V> row_sums[kGroup];
#pragma GCC unroll 4
  for (int r = 0; r < kGroup; ++r) row_sums[r] = rows[r];
  for (int c = 0; c < kTile; c += V::kLanes) {
    const int64_t j = tile.column + c;
    const auto threshold = V::load(p.threshold + j);
    Sums<V> column = columns[c / V::kLanes];
#pragma GCC unroll 4
    for (int r = 0; r < kGroup; ++r) {
      const int64_t i = row + r;
      const auto x = V::load(s + r * kTile + c);
      const Exponentials<V, own_shift> e(x, p.scale, own_shift ? p.shift[i] : 0,
                                         own_shift ? p.shift + j : nullptr);
      [[maybe_unused]] typename V::Mask candidate;
      if constexpr (masked) candidate = CandidateRow<V>(p.z, p.group, tile, i)(c);
      const auto add = [&](Sums<V>& sums, typename V::Reg y, typename V::Reg k) {
        [[maybe_unused]] typename V::Mask above;
        if constexpr (negatives_only || positives) above = V::greater(x, k);
        if constexpr (negatives_only && masked) sums.exp = V::add_where(~above & candidate, sums.exp, y);
        else if constexpr (negatives_only) sums.exp = V::add_where(~above, sums.exp, y);
        else if constexpr (masked) sums.exp = V::add_where(candidate, sums.exp, y);
        else sums.exp = sums.exp + y;
        if constexpr (positives) {
          if constexpr (masked) above = above & candidate;
          sums.positives = V::add_where(above, sums.positives, x);
          sums.count = V::count_where(above, sums.count);
        }
      };
      add(row_sums[r], e.row, V::broadcast(p.threshold[i]));
      add(column, e.column, threshold);
    }
    columns[c / V::kLanes] = column;
  }
#pragma GCC unroll 4
  for (int r = 0; r < kGroup; ++r) rows[r] = row_sums[r];
}

template <class V, int option>
void forward(const Forward<typename V::Scalar>& p, Rows rows, Rows columns, int64_t* counts) {
  using T = typename V::Scalar;
  const auto& z = p.pairs.z;
  alignas(64) T s[kTile * kTile];
  Sums<V> row_sums[kTile], column_sums[kTile / V::kLanes];
  for (int64_t row = rows.begin; row < rows.end; row += kTile) {
    for (auto& sums : row_sums) sums = {};
    for (int64_t column = first_column(row, rows, columns); column < columns.end; column += kTile) {
      const auto tile = make_tile(z, p.pairs.group, row, column);
      for (auto& sums : column_sums) sums = {};
      similarity_tile<V>(z, tile, s);
      with_mask(tile.masked, [&](auto masked) {
        for (int64_t r = 0; r < kTile; r += kGroup)
          add_sums<V, option | (masked.value ? kMasked : 0)>(p.pairs, tile, row + r, s + r * kTile,
                                                             row_sums + r, column_sums);
      });
      for_each_partner(z, tile, [&](int64_t i, int64_t partner, int64_t at) {
        p.partner_similarity[i] = p.partner_similarity[partner] = s[at];
      });
      if (counts) count_bins<V>(p, tile, s, counts);
      for (int c = 0; c < kTile; c += V::kLanes) {
        const auto& sums = column_sums[c / V::kLanes];
        const auto flush = [&](double* totals, typename V::Reg x) {
          T values[V::kLanes];
          V::store(values, x);
          for (int lane = 0; lane < V::kLanes; ++lane) totals[lane] += values[lane];
        };
        flush(p.sum_exp + column + c, sums.exp);
        if constexpr (option & kPositives) {
          flush(p.sum_positives + column + c, sums.positives);
          flush(p.num_positives + column + c, V::counted(sums.count));
        }
      }
    }
    for (int64_t r = 0; r < kTile; ++r) {
      p.sum_exp[row + r] += V::sum(row_sums[r].exp);
      if constexpr (option & kPositives) {
        p.sum_positives[row + r] += V::sum(row_sums[r].positives);
        p.num_positives[row + r] += V::sum(V::counted(row_sums[r].count));
      }
    }
  }
}

// Largest similarity in the denominator of each row, the partner aside (-2: none): the shift of the
// exponent where exp((s - 1) / tau) would underflow. NaN is passed over here: it reaches the sum.
template <class V, bool negatives_only>
void maximum(const Forward<typename V::Scalar>& p, Rows rows, Rows columns) {
  using T = typename V::Scalar;
  alignas(64) T s[kTile * kTile];
  for_each_tile(p.pairs.z, p.pairs.group, rows, columns, [&](const Tile<T>& tile) {
    similarity_tile<V>(p.pairs.z, tile, s);
    for (int64_t r = 0; r < kTile; ++r) {
      const int64_t i = tile.row + r;
      const CandidateRow<V> candidates(p.pairs.z, p.pairs.group, tile, i);
      const auto none = V::broadcast(-2);
      auto best = none;
      for (int c = 0; c < kTile; c += V::kLanes) {
        const int64_t j = tile.column + c;
        const auto x = V::load(s + r * kTile + c);
        auto for_row = candidates(c), for_column = for_row;
        if constexpr (negatives_only) {
          for_row = for_row & ~V::greater(x, V::broadcast(p.pairs.threshold[i]));
          for_column = for_column & ~V::greater(x, V::load(p.pairs.threshold + j));
        }
        best = V::max(V::select(for_row, x, none), best);
        V::store(p.maximum + j, V::max(V::select(for_column, x, none), V::load(p.maximum + j)));
      }
      const T largest = V::maximum(best);
      p.maximum[i] = largest > p.maximum[i] ? largest : p.maximum[i];
    }
  });
}

}  // namespace
