// Sums over the similarities that have no gradient: histogram, uniformity, rows for the quantile.
#pragma once
#include "tile.h"

namespace {

// Counts unordered pairs in `counts` (bins + kNowhere), a band (V::kRows, kSide) at a time: add() says
// what is in it, and its counters go up beside the products of the next band.
template <class V>
class BinCounter {
 public:
  using T = typename V::Scalar;
  static constexpr bool kWantsAll = true;  // a vector without candidates as well
  BinCounter(int64_t bins, int64_t* counts)
      : counts_(counts), last_(T(bins - 1)), half_bins_(T(bins) / 2), nowhere_(V::iota(T(bins))) {}
  ~BinCounter() { count_rest(); }

  // Increments for `steps` steps of a product.
  auto next(int64_t steps) {
    const int64_t left = (end_ - begin_) / kStep;
    const int64_t used = steps < left ? steps : left;
    const uint32_t* const at = at_ + begin_;
    begin_ += used * kStep;
    return [counts = counts_, at, used](int64_t step) {
      if (step < used)
#pragma GCC unroll 4
        for (int k = 0; k < kStep; ++k) ++counts[at[step * kStep + k]];
    };
  }

  // A new band follows, every vector of which has to be added.
  void start_band() {
    count_rest();
    begin_ = 0;
    end_ = V::kRows * kSide;
  }

  // Lanes that are NaN, or no `candidate` where the tile is masked, are nowhere.
  template <bool masked>
  void add(int64_t at, typename V::Reg x, [[maybe_unused]] typename V::Mask candidate) {
    const auto half_bins = V::broadcast(half_bins_);
    const auto bin = V::min(V::max(x * half_bins + half_bins, V::broadcast(0)), V::broadcast(last_));
    auto counted = V::equal(x, x);
    if constexpr (masked) counted = counted & candidate;
    V::store_integers(at_ + at, V::select(counted, bin, nowhere_));
  }

 private:
  static constexpr int kStep = V::kIncrements;
  void count_rest() {
    const int64_t steps = (end_ - begin_) / kStep;
    const auto count = next(steps);
    for (int64_t step = 0; step < steps; ++step) count(step);
  }

  int64_t* const counts_;
  const T last_, half_bins_;
  const typename V::Reg nowhere_;
  int64_t begin_ = 0, end_ = 0;  // of what is left to count
  alignas(64) uint32_t at_[V::kRows * kSide];
};

// Where no histogram is wanted.
template <class V>
struct NoCounter : Nothing {
  static constexpr bool kWantsAll = false;
  void start_band() {}
  template <bool masked>
  void add(int64_t, typename V::Reg, typename V::Mask) {}
};

template <class V>
void histogram(const Forward<typename V::Scalar>& p, Rows rows, Rows columns, int64_t* counts) {
  using T = typename V::Scalar;
  const auto& z = p.pairs.z;
  alignas(64) T s[V::kRows * kSide] = {};
  BinCounter<V> counter(p.bins, counts);
  for_each_tile<V>(z, p.pairs.group, rows, columns, [&](const Tile& tile) {
    for (int64_t row = tile.row; row < tile.row + kSide; row += V::kRows) {
      similarity_band<V>(z, tile, row, s, counter);
      counter.start_band();
      with_mask(tile.masked, [&](auto masked) {
        for (int64_t r = 0; r < V::kRows; ++r) {
          const CandidateRow<V> candidates(z, p.pairs.group, tile, row + r);
          for (int64_t c = 0; c < kSide; c += V::kLanes) {
            typename V::Mask candidate{};
            if constexpr (masked.value) candidate = candidates(c);
            const int64_t at = r * kSide + c;
            counter.template add<masked.value>(at, V::load(s + at), candidate);
          }
        }
      });
    }
  });
}

// Adds sum 2^(s * scale - shared_shift) over i < j to `sums` (padded_n / kTile), one for each of its tiles of rows.
template <class V>
void uniformity(const Pairs<typename V::Scalar>& p, Rows rows, Rows columns, double* sums) {
  using T = typename V::Scalar;
  alignas(64) T s[kSide * kSide];
  for_each_tile<V>(p.z, p.group, rows, columns, [&](const Tile& tile) {
    similarity_tile<V>(p.z, tile, s);
    for (int64_t r = 0; r < kSide; ++r) {
      const CandidateRow<V> candidates(p.z, p.group, tile, tile.row + r);
      auto total = V::broadcast(T(0));
      for (int64_t c = tile.first_column(tile.row + r, V::kLanes); c < kSide; c += V::kLanes) {
        const auto e = exp2<V>(V::load(s + r * kSide + c), p.scale, p.shared_shift);
        total = tile.masked ? V::add_where(candidates(c), total, e) : total + e;
      }
      sums[tile.row / kTile] += V::sum(total);
    }
  });
}

// Similarities of rows [row, row + V::kRows) with all rows, into out (V::kRows, padded_n).
template <class V>
void row_similarities(const Embeddings<typename V::Scalar>& z, int64_t row,
                      typename V::Scalar* out) {
  const typename V::Session session;
  for (int64_t column = 0; column < z.padded_n; column += kPanel<V>)
    similarities(V{}, z, row, column, out + column, z.padded_n, Nothing{});
}

}  // namespace
