// The exact quantile of each row's similarities without storing or sorting them: bisection on the bits of a
// float, which as integers are in the order of the numbers. One pass over the columns counts candidates, 32
// pin down the r-th smallest similarity of all rows, and one more finds its successor.
#pragma once
#include "tile.h"

namespace arec::cuda {

// The float at a place in the order of all floats; 0 is at 0, -0 at -1.
__device__ __forceinline__ float number_at(int place) { return __int_as_float(place ^ ((place >> 31) & 0x7fffffff)); }

template <class F, int width>
__global__ void __launch_bounds__(kThreads) quantile_kernel(Quantile p) {
  using S = Shape<F, width>;
  // At most candidates - rank similarities are above number_at(high), and more are above number_at(low).
  int candidates[S::kBlocks][2] = {}, low[S::kBlocks][2], high[S::kBlocks][2], above[S::kBlocks][2];
  int rank[S::kBlocks][2], invalid[S::kBlocks][2] = {};
  const auto for_each_similarity = [&](auto visit) {
    for_each_tile<F, width, true>(
        p.rows, nullptr, 0, [&](const float (&s)[S::kBlocks][S::kFragments][4], const Tile<F, S>&) {
          for_each_row<S>([&](int block, int half) {
#pragma unroll
            for (int c = 0; c < S::kFragments; ++c)
#pragma unroll
              for (int e = 2 * half; e < 2 * half + 2; ++e) visit(block, half, s[block][c][e]);
          });
        });
  };
  for_each_similarity([&](int block, int half, float x) {
    candidates[block][half] += x != kLeftOut;
    invalid[block][half] += x != x;
  });
  for_each_row<S>([&](int block, int half) {
    candidates[block][half] = sum_over_row(candidates[block][half]);
    invalid[block][half] = sum_over_row(invalid[block][half]);
    rank[block][half] = int(floor(p.q * candidates[block][half]));
    low[block][half] = -0x40000000;  // the number just above -2
    high[block][half] = 0x40000000;  // the number 2
  });
#pragma unroll 1
  for (int step = 0; step < 32; ++step) {
    float pivot[S::kBlocks][2];
    for_each_row<S>([&](int block, int half) {
      pivot[block][half] = number_at((low[block][half] + high[block][half]) >> 1);
      above[block][half] = 0;
    });
    for_each_similarity([&](int block, int half, float x) { above[block][half] += x > pivot[block][half]; });
    for_each_row<S>([&](int block, int half) {
      int& a = low[block][half];
      int& b = high[block][half];
      const int middle = (a + b) >> 1;
      const bool enough = sum_over_row(above[block][half]) <= candidates[block][half] - rank[block][half];
      (enough ? b : a) = middle;
    });
  }
  float larger[S::kBlocks][2];
  for_each_row<S>([&](int block, int half) {
    above[block][half] = 0;
    larger[block][half] = INFINITY;
  });
  for_each_similarity([&](int block, int half, float x) {
    if (x > number_at(high[block][half])) {
      ++above[block][half];
      larger[block][half] = fminf(larger[block][half], x);
    }
  });
  for_each_row<S>([&](int block, int half) {
    const float smaller = number_at(high[block][half]);
    float next = over_row(larger[block][half], [](float a, float b) { return fminf(a, b); });
    const int all = candidates[block][half], r = rank[block][half];
    if (sum_over_row(above[block][half]) < all - r) next = smaller;
    float quantile = (smaller + next) * 0.5f;
    if (!(quantile < next)) quantile = smaller;  // neighbouring floats have none between
    if (r >= all) quantile = INFINITY;
    if (r <= 0) quantile = -INFINITY;
    if (invalid[block][half]) quantile = __int_as_float(0x7fc00000);
    const int i = row_of<S>(block, half);
    if (lane() % 4 == 0 && i < p.rows.n) p.quantiles[i] = quantile;
  });
}

}  // namespace arec::cuda
