// Where the quantile of a row of similarities lies.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace arec::cpu {

// (s_(r) + s_(r+1)) / 2 of n values, r = floor(q n). Reorders them; scratch holds n as well.
template <class T>
T halfway(T* values, int64_t n, double q, T* scratch) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  constexpr int64_t kStride = 16;
  int64_t r = int64_t(std::floor(q * double(n)));
  if (r == 0) return -kInfinity;
  if (r == n) return kInfinity;
  if (const int64_t sample = n / kStride; sample >= 32) {
    // Every 16th value brackets the two, with four standard deviations to either side; only what lies
    // between is selected from. Where the bracket misses, all values are.
    for (int64_t k = 0; k < sample; ++k) scratch[k] = values[k * kStride];
    const int64_t margin = 1 + int64_t(4 * std::sqrt(q * (1 - q) * double(sample)));
    const int64_t at = r / kStride, lower = at - margin, upper = at + margin;
    T low = -kInfinity, high = kInfinity;
    if (lower >= 0) {
      std::nth_element(scratch, scratch + lower, scratch + sample);
      low = scratch[lower];
    }
    if (upper < sample) {
      std::nth_element(scratch + std::max<int64_t>(lower, 0), scratch + upper, scratch + sample);
      high = scratch[upper];
    }
    int64_t below = 0, between = 0;
    for (int64_t k = 0; k < n; ++k) {
      scratch[between] = values[k];
      below += values[k] < low;
      between += (values[k] >= low) & (values[k] <= high);
    }
    if (below < r && r < below + between) {
      values = scratch;
      n = between;
      r -= below;
    }
  }
  std::nth_element(values, values + r, values + n);
  const T smaller = *std::max_element(values, values + r), larger = values[r];
  const T middle = (smaller + larger) / 2;
  return middle < larger ? middle : smaller;  // between neighbouring floats there is none
}

}  // namespace arec::cpu
