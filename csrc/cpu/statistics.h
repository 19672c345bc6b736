// Sums over the similarities that have no gradient: histogram, uniformity, rows for the quantile.
#pragma once
#include "tile.h"

namespace {

constexpr int kHistogramCopies = 4;  // neighbours in a vector count apart, not waiting for each other

// Adds the tile's unordered candidate pairs to counts (bins + 1, kHistogramCopies); what is no
// candidate, and NaN, goes to the last row.
template <class V>
__attribute__((noinline)) void count_bins(const Forward<typename V::Scalar>& p,
                                          const Tile<typename V::Scalar>& tile,
                                          const typename V::Scalar* s, int64_t* counts) {
  using T = typename V::Scalar;
  const auto last = V::broadcast(T(p.bins - 1)), nowhere = V::broadcast(T(p.bins)),
             half_bins = V::broadcast(T(p.bins) / 2), one = V::broadcast(T(1)),
             zero = V::broadcast(T(0));
  const bool masked = tile.masked;
  for (int64_t r = 0; r < kTile; ++r) {
    const CandidateRow<V> candidates(p.pairs.z, p.pairs.group, tile, tile.row + r);
    uint32_t at[kTile];  // of each pair's count
    for (int c = 0; c < kTile; c += V::kLanes) {
      const auto x = V::load(s + r * kTile + c);
      auto bin = (x + one) * half_bins;
      bin = V::min(V::max(bin, zero), last);
      auto counted = V::equal(x, x);
      if (masked) counted = counted & candidates(c);
      V::template store_interleaved<kHistogramCopies>(at + c, V::select(counted, bin, nowhere));
    }
#pragma GCC unroll 8
    for (int c = 0; c < kTile; ++c) ++counts[at[c]];
  }
}

template <class V>
void histogram(const Forward<typename V::Scalar>& p, Rows rows, Rows columns, int64_t* counts) {
  using T = typename V::Scalar;
  alignas(64) T s[kTile * kTile];
  for_each_tile(p.pairs.z, p.pairs.group, rows, columns, [&](const Tile<T>& tile) {
    similarity_tile<V>(p.pairs.z, tile, s);
    count_bins<V>(p, tile, s, counts);
  });
}

// Adds sum exp((s - 1) / tau) over i < j to `sum`; -2 |x_i - x_j|^2 = (s - 1) / tau at tau = 1/4.
template <class V>
void uniformity(const Pairs<typename V::Scalar>& p, Rows rows, Rows columns, double* sum) {
  using T = typename V::Scalar;
  alignas(64) T s[kTile * kTile];
  for_each_tile(p.z, p.group, rows, columns, [&](const Tile<T>& tile) {
    similarity_tile<V>(p.z, tile, s);
    for (int64_t r = 0; r < kTile; ++r) {
      const CandidateRow<V> candidates(p.z, p.group, tile, tile.row + r);
      auto total = V::broadcast(T(0));
      for (int c = 0; c < kTile; c += V::kLanes) {
        const auto e = Exponentials<V, false>(V::load(s + r * kTile + c), p.scale, T(0), nullptr).row;
        total = tile.masked ? V::add_where(candidates(c), total, e) : total + e;
      }
      *sum += V::sum(total);
    }
  });
}

// Similarities of rows [row, row + V::kRows) with all rows, into out (V::kRows, padded_n).
template <class V>
void row_similarities(const Embeddings<typename V::Scalar>& z, int64_t row,
                      typename V::Scalar* out) {
  for (int64_t column = 0; column < z.padded_n; column += kPanel<V>)
    similarities<V>(z, row, column, out + column, z.padded_n);
}

}  // namespace
