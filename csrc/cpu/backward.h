// The gradient: a tile of similarities is recomputed, turned into G_ij + G_ji in place, and serves
// the rows of I (G Z_J) and those of J (G^T Z_I).
#pragma once
#include "tile.h"

namespace {

// Whether what a tile on the diagonal has below its vectors is never read: the products leave it out
// for V::kRows rows together, which are to lie within the height of a vector.
template <class V>
constexpr bool kTriangles = V::kLanes % V::kRows == 0;

// G_ij + G_ji (upstream gradients included) of the candidates of one tile, in place; else 0. `p` is a
// copy, of which the compiler knows that no store to `s` changes it.
template <class V, int option>
__attribute__((noinline)) void pair_gradients(const Backward<typename V::Scalar> p, const Tile& tile,
                                              typename V::Scalar* s) {
  constexpr bool positives = option & kPositives, negatives_only = option & kNegativesOnly,
                 own_shift = option & kOwnShift, masked = option & kMasked;
  const auto& pairs = p.pairs;
  for (int c = 0; c < kSide; c += V::kLanes) {
    const int64_t j = tile.column + c;
    const auto threshold = V::load(pairs.threshold + j), denominator = V::load(p.denominator + j),
               positive = V::load(p.positive + j);
    const int64_t rows = kTriangles<V> && tile.row == tile.column ? c + V::kLanes : kSide;
#pragma GCC unroll 4
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = tile.row + r;
      const auto x = V::load(s + r * kSide + c);
      const Exponentials<V, own_shift> e(x, pairs, i, j);
      // One row's share of the pair's gradient, added to `g`.
      const auto add = [&](typename V::Reg g, typename V::Reg k, typename V::Reg factor,
                           typename V::Reg exponential, typename V::Reg pull) {
        const auto below = factor * exponential + g;
        if constexpr (!positives && !negatives_only) return below;
        auto above = negatives_only ? g : below;
        if constexpr (positives) above = above + pull;
        return V::select(V::greater(x, k), above, below);
      };
      // x + -0 is x and no instruction, x + 0 is one.
      auto g = add(V::broadcast(-0.0f), V::broadcast(pairs.threshold[i]), V::broadcast(p.denominator[i]),
                   e.row, V::broadcast(p.positive[i]));
      g = add(g, threshold, denominator, e.column, positive);
      if constexpr (masked) g = V::zero_unless(CandidateRow<V>(pairs.z, pairs.group, tile, i)(c), g);
      V::store(s + r * kSide + c, g);
    }
  }
}

// The partner's entry, as RowFactors::partner of ../loss.h has it, which kernels cannot include.
template <class T>
inline T partner_gradient(const Backward<T>& p, int64_t i, T s) {
  const double logit = T(s * p.inverse_temperature);
  return T(p.partner_share[i] * __builtin_exp(logit - p.log_denominator[i]) - p.partner_weight[i]);
}

// Straight-through gradient of the thresholds: sums of sigma' dl/dq over rows and columns.
template <class V>
__attribute__((noinline)) void threshold_gradients(const Backward<typename V::Scalar>& p, const Tile& tile,
                                                   const typename V::Scalar* s) {
  const auto& pairs = p.pairs;
  typename V::Reg columns[kSide / V::kLanes];
  for (auto& sum : columns) sum = V::broadcast(0);
  const auto width = V::broadcast(-p.inverse_width);
  // dl/dq sigma (1 - sigma), the latter being t / (1 + t)^2 with t = exp(-|s - k| / h). One exponent for t and the
  // share of D, with log D in it: apart, one of them may be as large as a float is before the other one is 0.
  const auto pull = [&](typename V::Reg x, typename V::Reg threshold, typename V::Reg shift,
                        typename V::Reg plain, typename V::Reg exponential) {
    const auto distance = width * V::abs(x - threshold);
    const auto t = exp2_any<V>(distance), one = V::broadcast(1) + t;
    const auto share = exp2_any<V>(x * V::broadcast(pairs.scale) - shift + distance);
    return (plain * t + exponential * share) / (one * one);
  };
  for (int64_t r = 0; r < kSide; ++r) {
    const int64_t i = tile.row + r;
    const CandidateRow<V> candidates(pairs.z, pairs.group, tile, i);
    auto sum = V::broadcast(0);
    for (int64_t c = tile.first_column(i, V::kLanes); c < kSide; c += V::kLanes) {
      const int64_t j = tile.column + c;
      const auto x = V::load(s + r * kSide + c);
      const auto candidate = candidates(c);
      const auto row = pull(x, V::broadcast(pairs.threshold[i]), V::broadcast(pairs.shift[i]),
                            V::broadcast(p.linear[i]) * (x - V::broadcast(p.center[i])),
                            V::broadcast(p.exponential[i]));
      const auto column = pull(x, V::load(pairs.threshold + j), V::load(pairs.shift + j),
                               V::load(p.linear + j) * (x - V::load(p.center + j)),
                               V::load(p.exponential + j));
      sum = V::add_where(candidate, sum, row);
      auto& total = columns[c / V::kLanes];
      total = V::add_where(candidate, total, column);
    }
    p.grad_threshold[i] += V::sum(sum);
  }
  for (int64_t c = 0; c < kSide; ++c)
    p.grad_threshold[tile.column + c] += double(columns[c / V::kLanes][c % V::kLanes]);
}

// The gradients of a tile's rows and columns, from its G.
template <class V, class T>
inline void add_gradients(V, const Backward<T>& p, int64_t row, int64_t column, T* g) {
  const auto& z = p.pairs.z;
  T* const to_rows = p.gradient + row * z.width;
  T* const to_columns = p.gradient + column * z.width;
  const bool triangle = row == column;
  const auto upper = triangle ? Shape::kUpper : Shape::kFull, lower = triangle ? Shape::kLower : Shape::kFull;
  if constexpr (V::kPack == 1) {
    add_product<V>(g, kSide, 1, upper, z.rows + column * z.width, z, to_rows);
    add_product<V>(g, 1, kSide, lower, z.rows + row * z.width, z, to_columns);
  } else {
    alignas(64) T left[kSide * kSide / 2], right[kSide * kSide / 2];
    V::pack_pairs(g, left, right);
    add_product<V>(left, kSide / 2, 1, upper, z.row_pairs + column / 2 * z.width, z, to_rows);
    add_product<V>(right, 1, kSide, lower, z.row_pairs + row / 2 * z.width, z, to_columns);
  }
}

template <class V, int option>
void backward(const Backward<typename V::Scalar>& p, Rows rows, Rows columns) {
  using T = typename V::Scalar;
  const auto& z = p.pairs.z;
  alignas(64) T s[kSide * kSide];
  for_each_tile<V>(z, p.pairs.group, rows, columns, [&](const Tile& tile) {
    if (!V::kTiles && tile.next >= 0) {
      if constexpr (V::kPack == 1) prefetch(z.rows + tile.next * z.width, kSide * z.width);
      prefetch(p.gradient + tile.next * z.width, kSide * z.width);
    }
    similarity_tile<V>(z, tile, s);
    if (p.grad_threshold) threshold_gradients<V>(p, tile, s);
    T partners[kSide];
    for_each_partner(z, tile, tile.row, kSide, [&](int64_t i, int64_t partner, int64_t at) {
      partners[i - tile.row] = partner_gradient(p, i, s[at]) + partner_gradient(p, partner, s[at]);
    });
    with_mask(tile.masked, [&](auto masked) {
      pair_gradients<V, option | (masked.value ? kMasked : 0)>(p, tile, s);
    });
    for_each_partner(z, tile, tile.row, kSide,
                     [&](int64_t i, int64_t, int64_t at) { s[at] = partners[i - tile.row]; });
    add_gradients(V{}, p, tile.row, tile.column, s);
  });
}

}  // namespace
