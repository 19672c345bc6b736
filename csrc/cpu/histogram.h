// The histogram of similarities, beside the forward pass or alone.
#pragma once
#include "tile.h"

namespace {

// Counts unordered pairs in `counts` (bins + kNowhere), a band (V::kRows, kSide) at a time. The bins of a band
// are found in add(), and its counters go up while the next band is computed: the first cache takes a store a
// cycle, and there are other things to do meanwhile. That is in next(), beside the products, a few in each step;
// where products have a unit of their own (V::kTiles) in add(), beside the sums.
template <class V>
class BinCounter {
 public:
  using T = typename V::Scalar;
  static constexpr bool kWantsAll = true;  // a vector without candidates as well
  BinCounter(int64_t bins, uint32_t* counts)
      : counts_(counts), last_(T(bins - 1)), half_bins_(T(bins) / 2), nowhere_(V::iota(T(bins))) {
    if constexpr (V::kTiles)  // what the first band finds of the one before it
      for (int64_t k = 0; k < kBand; ++k) band_[k] = uint32_t(bins + k % kNowhere);
  }
  BinCounter(const BinCounter&) = delete;
  ~BinCounter() { count(begin_, kBand); }

  // Increments for `steps` steps of a product.
  auto next(int64_t steps) {
    if constexpr (V::kTiles) {
      return Nothing();
    } else {
      const int64_t left = (kBand - begin_) / kStep;
      const int64_t used = steps < left ? steps : left;
      const uint32_t* const at = band_ + begin_;
      begin_ += used * kStep;
      return [counts = counts_, at, used](int64_t step) {
        if (step < used)
#pragma GCC unroll 4
          for (int k = 0; k < kStep; ++k) ++counts[at[step * kStep + k]];
      };
    }
  }

  // A new band follows, every vector of which has to be added.
  void start_band() {
    if constexpr (!V::kTiles) count(begin_, kBand);
    begin_ = 0;
  }

  // Lanes that are NaN, or no `candidate` where the tile is masked, are nowhere.
  template <bool masked>
  void add(int64_t at, typename V::Reg x, [[maybe_unused]] typename V::Mask candidate) {
    if constexpr (V::kTiles) count(at, at + V::kLanes);
    const auto half_bins = V::broadcast(half_bins_);
    auto bin = V::min(V::broadcast(last_), V::max(V::broadcast(0), x * half_bins + half_bins));
    if constexpr (masked) bin = V::select(candidate, bin, nowhere_);
    V::store_integers(band_ + at, bin, last_ + 1);
  }

 private:
  static constexpr int kStep = V::kTiles ? V::kLanes : V::kIncrements;
  static constexpr int64_t kBand = V::kRows * kSide;
  static_assert(kBand % kStep == 0);
  void count(int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k += kStep)
#pragma GCC unroll 16
      for (int i = 0; i < kStep; ++i) ++counts_[band_[k + i]];
  }

  uint32_t* const counts_;
  const T last_, half_bins_;
  const typename V::Reg nowhere_;
  int64_t begin_ = V::kTiles ? 0 : kBand;  // of what is left to count of the last band
  alignas(64) uint32_t band_[kBand];
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
void histogram(const Forward<typename V::Scalar>& p, Rows rows, Rows columns, uint32_t* counts) {
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

}  // namespace
