// Row sums of the loss: the denominator, the positives' similarities and their number. A tile (I, J)
// is computed once and serves the rows of I (summed along the rows) and those of J (down the columns).
#pragma once
#include "histogram.h"
#include "tile.h"

namespace {

template <class V>
struct Sums {
  typename V::Reg exp = V::broadcast(0), positives = exp, count = exp;

  // Register by register: gcc copies a whole struct by way of memory.
  Sums() = default;
  Sums(const Sums& o) : exp(o.exp), positives(o.positives), count(o.count) {}
  Sums& operator=(const Sums& o) {
    exp = o.exp, positives = o.positives, count = o.count;
    return *this;
  }
};

// Adds the pairs of rows [row, row + 4) of a tile, whose similarities are `s` (at `at` of the counter's
// band), to the sums of these rows (4) and of the tile's columns (kSide / kLanes).
template <class V, int option, class Counter>
void add_sums(const Forward<typename V::Scalar>& p, const Tile& tile, int64_t row,
              const typename V::Scalar* s, Sums<V>* row_sums, Sums<V>* column_sums, Counter& counter,
              int64_t at) {
  constexpr bool positives = option & kPositives, negatives_only = option & kNegativesOnly,
                 own_shift = option & kOwnShift, masked = option & kMasked;
  const auto& pairs = p.pairs;
  Sums<V> rows[4] = {row_sums[0], row_sums[1], row_sums[2], row_sums[3]};
  for (int64_t c = Counter::kWantsAll ? 0 : tile.first_column(row, V::kLanes); c < kSide;
       c += V::kLanes) {
    const int64_t j = tile.column + c;
    const auto threshold = V::load(pairs.threshold + j);
    Sums<V> column = column_sums[c / V::kLanes];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const int64_t i = row + r;
      const auto x = V::load(s + r * kSide + c);
      const Exponentials<V, own_shift> e(x, pairs, i, j);
      typename V::Mask candidate{};
      if constexpr (masked) candidate = CandidateRow<V>(pairs.z, pairs.group, tile, i)(c);
      counter.template add<masked>(at + r * kSide + c, x, candidate);
      const auto add = [&](Sums<V>& sums, typename V::Reg y, typename V::Reg k) {
        if constexpr (negatives_only) {
          auto below = V::not_greater(x, k);
          if constexpr (masked) below = below & candidate;
          sums.exp = V::add_where(below, sums.exp, y);
        } else if constexpr (masked) {
          sums.exp = V::add_where(candidate, sums.exp, y);
        } else {
          sums.exp = sums.exp + y;
        }
        if constexpr (positives) {
          auto above = V::greater(x, k);
          if constexpr (masked) above = above & candidate;
          sums.positives = V::add_where(above, sums.positives, x);
          sums.count = V::count_where(above, sums.count);
        }
      };
      add(rows[r], e.row, V::broadcast(pairs.threshold[i]));
      add(column, e.column, threshold);
    }
    column_sums[c / V::kLanes] = column;
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) row_sums[r] = rows[r];
}

// Adds the sums of rows [row, row + kSide), and begins new ones.
template <class V, int option>
void add_row_sums(const Forward<typename V::Scalar>& p, int64_t row, Sums<V>* sums) {
  for (int64_t end = row + kSide; row < end; row += 4, sums += 4) {
    V::add_sums_of_4(p.sum_exp + row, sums[0].exp, sums[1].exp, sums[2].exp, sums[3].exp);
    if constexpr (option & kPositives) {
      V::add_sums_of_4(p.sum_positives + row, sums[0].positives, sums[1].positives, sums[2].positives,
                       sums[3].positives);
      V::add_sums_of_4(p.num_positives + row, V::counted(sums[0].count), V::counted(sums[1].count),
                       V::counted(sums[2].count), V::counted(sums[3].count));
    }
    for (int r = 0; r < 4; ++r) sums[r] = {};
  }
}

template <class V, int option>
void add_column_sums(const Forward<typename V::Scalar>& p, int64_t column, const Sums<V>* sums) {
  for (int64_t end = column + kSide; column < end; column += V::kLanes, ++sums) {
    V::add_lanes(p.sum_exp + column, sums->exp);
    if constexpr (option & kPositives) {
      V::add_lanes(p.sum_positives + column, sums->positives);
      V::add_lanes(p.num_positives + column, V::counted(sums->count));
    }
  }
}

template <class V, int option, class Counter>
void add_all_sums(const Forward<typename V::Scalar>& p, Rows rows, Rows columns, Counter counter) {
  using T = typename V::Scalar;
  const auto& z = p.pairs.z;
  alignas(64) T s[V::kRows * kSide] = {};
  Sums<V> row_sums[kSide];
  for_each_tile<V>(z, p.pairs.group, rows, columns, [&](const Tile& tile) {
    Sums<V> column_sums[kSide / V::kLanes];
    for (int64_t row = tile.row; row < tile.row + kSide; row += V::kRows) {
      similarity_band<V>(z, tile, row, s, counter);
      counter.start_band();
      with_mask(tile.masked, [&](auto masked) {
        constexpr int all = option | (masked.value ? kMasked : 0);
        for (int64_t r = 0; r < V::kRows; r += 4)
          add_sums<V, all>(p, tile, row + r, s + r * kSide, row_sums + (row - tile.row) + r, column_sums,
                           counter, r * kSide);
      });
      for_each_partner(z, tile, row, V::kRows, [&](int64_t i, int64_t partner, int64_t at) {
        p.partner_similarity[i] = p.partner_similarity[partner] = s[at];
      });
    }
    add_column_sums<V, option>(p, tile.column, column_sums);
    // Sums become doubles after every kTile columns, not at the end of a task: so their order is the same
    // however a pair of blocks was cut into tasks.
    if ((tile.column + kSide) % kTile == 0) add_row_sums<V, option>(p, tile.row, row_sums);
  });
}

template <class V, int option>
void forward(const Forward<typename V::Scalar>& p, Rows rows, Rows columns, uint32_t* counts) {
  if (counts) add_all_sums<V, option>(p, rows, columns, BinCounter<V>(p.bins, counts));
  else add_all_sums<V, option>(p, rows, columns, NoCounter<V>());
}

// Largest similarity in the denominator of each row, the partner aside (-2: none): the shift of the
// exponent where exp((s - 1) / tau) would underflow. NaN is passed over here: it reaches the sum.
template <class V, bool negatives_only>
void maximum(const Forward<typename V::Scalar>& p, Rows rows, Rows columns) {
  using T = typename V::Scalar;
  alignas(64) T s[kSide * kSide];
  for_each_tile<V>(p.pairs.z, p.pairs.group, rows, columns, [&](const Tile& tile) {
    similarity_tile<V>(p.pairs.z, tile, s);
    for (int64_t r = 0; r < kSide; ++r) {
      const int64_t i = tile.row + r;
      const CandidateRow<V> candidates(p.pairs.z, p.pairs.group, tile, i);
      const auto none = V::broadcast(-2);
      auto best = none;
      for (int64_t c = tile.first_column(i, V::kLanes); c < kSide; c += V::kLanes) {
        const int64_t j = tile.column + c;
        const auto x = V::load(s + r * kSide + c);
        auto for_row = candidates(c), for_column = for_row;
        if constexpr (negatives_only) {
          for_row = for_row & V::not_greater(x, V::broadcast(p.pairs.threshold[i]));
          for_column = for_column & V::not_greater(x, V::load(p.pairs.threshold + j));
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
