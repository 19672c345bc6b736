// Forward pass: what the pairs of each row add up to, from one look at every similarity. A block owns its
// rows and nothing is added across blocks (but a histogram's integers), so the bits are the same every run.
#pragma once
#include "tile.h"

namespace arec::cuda {

__device__ __forceinline__ int bin_of(float s, int bins) {
  // (s + 1) * (bins / 2) has the one rounding of (s + 1) / 2 * bins.
  return int(fminf(fmaxf(floorf((s + 1) * (bins * 0.5f)), 0), bins - 1));
}

// A sum of as many numbers as there are tiles, alike perhaps, so that each might be rounded the same way: with
// what the rounding lost (Kahan).
class RunningSum {
 public:
  __device__ __forceinline__ void add(float x) {
    const float y = x - excess_, total = total_ + y;
    excess_ = (total - total_) - y;
    total_ = total;
  }
  __device__ __forceinline__ void scale(float factor) {
    total_ *= factor;
    excess_ *= factor;
  }
  __device__ __forceinline__ float total() const { return total_; }

 private:
  float total_ = 0, excess_ = 0;
};

template <class F, int width, bool general>
__global__ void __launch_bounds__(kThreads) forward_kernel(Forward p) {
  using S = Shape<F, width>;
  const bool own_shift = general && p.own_shift, negatives_only = !general || p.negatives_only;
  float threshold[S::kBlocks][2];
  RunningSum sum[S::kBlocks][2], positives[S::kBlocks][2];
  float maximum[S::kBlocks][2], count[S::kBlocks][2] = {};
  for_each_row<S>([&](int block, int half) {
    const int i = row_of<S>(block, half);
    threshold[block][half] = p.threshold != nullptr && i < p.rows.n ? at_least_lowest(p.threshold[i]) : INFINITY;
    maximum[block][half] = -1;
  });
  int* const counts = reinterpret_cast<int*>(shared_memory() + S::kBytes);
  const bool count_here = general && p.histogram != nullptr && p.bins <= kSharedBins;
  if (count_here) {
    for (int bin = threadIdx.x; bin < p.bins; bin += kThreads) counts[bin] = 0;
    __syncthreads();
  }

  for_each_tile<F, width, general>(
      p.rows, nullptr, 0, [&](const float (&s)[S::kBlocks][S::kFragments][4], const Tile<F, S>&) {
        for_each_row<S>([&](int block, int half) {
          const float k = threshold[block][half];
          float shift = p.scale;
          if (own_shift) {
            float largest = maximum[block][half];
#pragma unroll
            for (int c = 0; c < S::kFragments; ++c)
#pragma unroll
              for (int e = 2 * half; e < 2 * half + 2; ++e) {
                const float x = s[block][c][e];
                if (!(negatives_only && x > k)) largest = fmaxf(largest, x);
              }
            sum[block][half].scale(exp2_fast((maximum[block][half] - largest) * p.scale));
            maximum[block][half] = largest;
            shift = largest * p.scale;
          }
          float tile_sum = 0, tile_positives = 0, tile_count = 0;
#pragma unroll
          for (int c = 0; c < S::kFragments; ++c)
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; ++e) {
              const float x = s[block][c][e];
              // A number, not a condition: it takes part in sums with one instruction each.
              const float above = x > k ? 1.0f : 0.0f;
              const float exponential = exp2_fast(x * p.scale - shift);
              if (general) tile_sum += negatives_only && x > k ? 0.0f : exponential;  // it may be infinite
              else tile_sum += exponential - above * exponential;
              tile_positives += above * x;
              tile_count += above;
              if (general && p.histogram != nullptr && x > kLeftOut) {
                const int bin = bin_of(x, p.bins);
                if (count_here) atomicAdd(counts + bin, 1);
                else atomicAdd(p.histogram + bin, 1ull);
              }
            }
          sum[block][half].add(tile_sum);
          positives[block][half].add(tile_positives);
          count[block][half] += tile_count;
        });
      });

  float* const statistics = p.statistics + int64_t(blockIdx.z) * kStatistics * p.rows.padded_n;
  for_each_row<S>([&](int block, int half) {
    float total = sum[block][half].total();
    const float largest = over_row(maximum[block][half], [](float a, float b) { return fmaxf(a, b); });
    if (own_shift) total *= exp2_fast((maximum[block][half] - largest) * p.scale);
    total = sum_over_row(total);
    const float similarities = sum_over_row(positives[block][half].total());
    const float number = sum_over_row(count[block][half]);
    if (lane() % 4 == 0) {
      float* const row = statistics + row_of<S>(block, half);
      row[int64_t(kExponentials) * p.rows.padded_n] = total;
      row[int64_t(kMaximum) * p.rows.padded_n] = largest;
      row[int64_t(kPositives) * p.rows.padded_n] = similarities;
      row[int64_t(kNumPositives) * p.rows.padded_n] = number;
    }
  });
  if (count_here) {
    __syncthreads();
    for (int bin = threadIdx.x; bin < p.bins; bin += kThreads)
      if (counts[bin]) atomicAdd(p.histogram + bin, (unsigned long long)(counts[bin]));
  }
}

}  // namespace arec::cuda
