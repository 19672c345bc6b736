// Backward pass: G_ij + G_ji of a recomputed tile, times the tile's columns, is its share of the gradient of
// the block's rows. Nothing is added across blocks: no atomics, the same bits every run.
#pragma once
#include "tile.h"

namespace arec::cuda {

// A thread's share of the straight-through gradient of a row's threshold: sum of sigma' dl/dq over the tile.
template <class S>
__device__ __forceinline__ float threshold_pull(const Backward& p, const float (&s)[S::kFragments][4], int half,
                                                float threshold, float shift, float linear, float center,
                                                float exponential) {
  float total = 0;
  // Of shares up to there the sum of a row is finite, as in the oracle: an upstream gradient may be 0.
  const float most = 126 - log2f(float(p.rows.n));
#pragma unroll
  for (int c = 0; c < S::kFragments; ++c)
#pragma unroll
    for (int e = 2 * half; e < 2 * half + 2; ++e) {
      const float x = s[c][e];
      // sigma (1 - sigma) = t / (1 + t)^2 with t = exp(-|s - k| / h). One exponent for t and the share of D, with
      // log D in it: apart, one of them may be as large as a float is before the other one is 0.
      const float distance = fabsf(x - threshold) * p.inverse_width;
      const float t = exp2_fast(-distance);
      const float exponent = x * p.scale - shift - distance;
      const float share = exp2_fast(exponent > most ? most : exponent);
      const float value = (linear * (x - center) * t + exponential * share) / ((1 + t) * (1 + t));
      total += x == kLeftOut ? 0.0f : value;
    }
  return total;
}

template <class F, int width, bool general>
__global__ void __launch_bounds__(kThreads) backward_kernel(Backward p) {
  using S = Shape<F, width>;
  const bool own_shift = general && p.own_shift, soft = general && p.threshold_gradients != nullptr;
  // One side's share of G_ij + G_ji.
  const auto pull_of = [&](float share, bool above, float positive) {
    if (!general || p.negatives_only) return above ? -positive : share;
    return share - (above ? positive : 0.0f);
  };
  const int first_number = blockIdx.y * S::kGradient;
  float of_row[kOfColumn][S::kBlocks][2];
  float gradient[S::kBlocks][S::kGradient / kEight][4] = {};
  float pull[S::kBlocks][2] = {};
  const auto coefficient = [&](int which, int block, int half) {
    return p.coefficients[int64_t(which) * p.rows.padded_n + row_of<S>(block, half)];
  };
  for_each_row<S>([&](int block, int half) {
#pragma unroll
    for (int which = 0; which < kOfColumn; ++which) of_row[which][block][half] = coefficient(which, block, half);
  });

  for_each_tile<F, width, general>(
      p.rows, p.coefficients, first_number,
      [&](float (&s)[S::kBlocks][S::kFragments][4], const Tile<F, S>& tile) {
        if (soft)
          for_each_row<S>([&](int block, int half) {
            pull[block][half] += threshold_pull<S>(
                p, s[block], half, of_row[kThreshold][block][half], of_row[kShift][block][half],
                coefficient(kLinear, block, half), coefficient(kCenter, block, half),
                coefficient(kExponential, block, half));
          });
#pragma unroll
        for (int c = 0; c < S::kFragments; ++c)
#pragma unroll
          for (int odd = 0; odd < 2; ++odd) {
            const float* const of_column = tile.coefficients + c * kEight + pair() + odd;
            const float column_threshold = of_column[kThreshold * S::kColumns];
            const float column_denominator = of_column[kDenominator * S::kColumns];
            const float column_positive = of_column[kPositive * S::kColumns];
            for_each_row<S>([&](int block, int half) {
              float& entry = s[block][c][2 * half + odd];
              const float x = entry;
              float row_share, column_share;
              if (own_shift) {
                row_share = exp2_fast(x * p.scale - of_row[kShift][block][half]);
                column_share = exp2_fast(x * p.scale - of_column[kShift * S::kColumns]);
              } else {
                row_share = column_share = exp2_fast(x * p.scale - p.scale);
              }
              entry = pull_of(row_share * of_row[kDenominator][block][half],
                              x > of_row[kThreshold][block][half], of_row[kPositive][block][half]) +
                      pull_of(column_share * column_denominator, x > column_threshold, column_positive);
            });
          }
        add_gradients(F{}, gradient, s, tile.columns, S::kStride);
      });

  for_each_row<S>([&](int block, int half) {
    const int64_t row = int64_t(blockIdx.z) * p.rows.padded_n + row_of<S>(block, half);
    float2* const to = reinterpret_cast<float2*>(p.gradients + row * p.rows.width + first_number + pair());
#pragma unroll
    for (int d = 0; d < S::kGradient / kEight; ++d)
      to[d * kEight / 2] = make_float2(gradient[block][d][2 * half], gradient[block][d][2 * half + 1]);
    if (soft) {
      const float total = sum_over_row(pull[block][half]);
      if (lane() % 4 == 0 && blockIdx.y == 0) p.threshold_gradients[row] = total;
    }
  });
}

}  // namespace arec::cuda
