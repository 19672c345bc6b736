// The histogram of similarities, beside the forward pass or alone.
#pragma once
#include "tile.h"

namespace {

// Counts unordered pairs in `counts` (bins + kNowhere), a band (V::kRows, kSide) at a time. The bins of a band
// are found in add(), and its counters go up while the next band is computed: the first cache takes a store a
// cycle, and there are other things to do meanwhile. The first kBeside of them go up in next(), beside the
// products of the next band; [begin_, end_) are still to come. The rest, half of them where products have a
// unit of their own (V::kTiles) and are over sooner, go up in add(), beside its sums.
template <class V>
class BinCounter {
 public:
  using T = typename V::Scalar;
  static constexpr bool kWantsAll = true;  // a vector without candidates as well
  BinCounter(int64_t bins, uint32_t* counts)
      : counts_(counts), last_(T(bins - 1)), half_bins_(T(bins) / 2), nowhere_(V::iota(T(bins))) {
    // What the first band finds of the one before it.
    for (int64_t k = kBeside; k < kBand; ++k) bands_[0][k] = uint32_t(bins + k % kNowhere);
  }
  BinCounter(const BinCounter&) = delete;
  ~BinCounter() {
    if (end_ > 0) end_ = kBand;  // no band follows, so the second part is counted here as well
    count_rest();
  }

  // Increments for `steps` steps of a product.
  auto next(int64_t steps) {
    const int64_t left = (end_ - begin_) / kStep;
    const int64_t used = steps < left ? steps : left;
    const uint32_t* const at = band_ + begin_;
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
    end_ = kBeside;
    before_ = band_;
    band_ = band_ == bands_[0] ? bands_[kBands - 1] : bands_[0];
  }

  // Lanes that are NaN, or no `candidate` where the tile is masked, are nowhere.
  template <bool masked>
  void add(int64_t at, typename V::Reg x, [[maybe_unused]] typename V::Mask candidate) {
    if constexpr (kBeside < kBand) {
#pragma GCC unroll 8
      for (int k = 0; k < V::kLanes / 2; ++k) ++counts_[before_[kBeside + at / 2 + k]];
    }
    const auto half_bins = V::broadcast(half_bins_);
    auto bin = V::min(V::broadcast(last_), V::max(V::broadcast(0), x * half_bins + half_bins));
    if constexpr (masked) bin = V::select(candidate, bin, nowhere_);
    V::store_integers(band_ + at, bin, last_ + 1);
  }

 private:
  static constexpr int kStep = V::kIncrements, kBands = V::kTiles ? 2 : 1;
  static constexpr int64_t kBand = V::kRows * kSide, kBeside = kBand / kBands;
  static_assert(kBeside % kStep == 0);
  void count_rest() {
    const int64_t steps = (end_ - begin_) / kStep;
    const auto count = next(steps);
    for (int64_t step = 0; step < steps; ++step) count(step);
  }

  uint32_t* const counts_;
  const T last_, half_bins_;
  const typename V::Reg nowhere_;
  int64_t begin_ = 0, end_ = 0;  // of what is left to count of the last band
  alignas(64) uint32_t bands_[kBands][kBand];
  uint32_t *band_ = bands_[0], *before_ = bands_[0];
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
