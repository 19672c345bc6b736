// Where the quantile of a row of similarities lies: bisection on the bits of a floating-point number, which
// as integers are in the order of the numbers, finds a number with as many of the row below it as there
// should be. A step counts a vector in two instructions, and reads nothing but the row, which is in the
// first or second cache: selecting moves numbers one at a time, and guesses wrongly where each belongs.
#pragma once
#include "simd.h"

namespace {

template <class T>
struct Order;
template <>
struct Order<float> {
  using Place = int32_t;
};
template <>
struct Order<double> {
  using Place = int64_t;
};

// The number at a place in the order of all numbers; 0 is at 0, -0 at -1.
template <class T, class Place>
T number_at(Place place) {
  return __builtin_bit_cast(T, place < 0 ? place ^ ~(Place(1) << (8 * sizeof(Place) - 1)) : place);
}

constexpr int kCounters = 4;  // in turn, so that no addition waits for the one before

// How many of n values, of kCounters whole vectors each time, are below a bound. NaN is not. Exact to 2^24.
template <class V, class T = typename V::Scalar>
int64_t count_below(const T* values, int64_t n, T bound) {
  const auto above = V::broadcast(bound);
  typename V::Reg counters[kCounters] = {};
  for (int64_t k = 0; k < n; k += kCounters * V::kLanes)
#pragma GCC unroll 4
    for (int c = 0; c < kCounters; ++c)
      counters[c] = V::count_where(V::greater(above, V::load(values + k + c * V::kLanes)), counters[c]);
  auto total = V::counted(counters[0]);
  for (int c = 1; c < kCounters; ++c) total = total + V::counted(counters[c]);
  return int64_t(V::sum(total));
}

// (s_(r) + s_(r+1)) / 2 of the candidates among the n similarities of a row, r = floor(q candidates). Others
// give way to infinity, and so does what follows, up to a multiple of kTile.
template <class V, class T = typename V::Scalar>
T row_quantile(T* values, int64_t n, int64_t row, int64_t partner, const T* group, double q) {
  using Place = typename Order<T>::Place;
  constexpr T infinity = T(__builtin_inf());
  constexpr int64_t step = kCounters * V::kLanes;
  static_assert(kTile % step == 0, "no row is shorter");
  const int64_t end = (n + step - 1) / step * step;
  for (int64_t k = n; k < end; ++k) values[k] = infinity;
  int64_t candidates = n;
  const int64_t itself_and_partner[] = {row, partner};
  for (const int64_t other : itself_and_partner) {
    values[other] = infinity;
    candidates -= !group || group[other] != group[row];  // NaN: of no group
  }
  if (group) {
    const auto own = V::broadcast(group[row]), left_out = V::broadcast(infinity);
    auto counter = V::broadcast(0);
    for (int64_t k = 0; k < end; k += V::kLanes) {
      const auto same = V::equal(own, V::load(group + k));
      V::store(values + k, V::select(same, left_out, V::load(values + k)));
      counter = V::count_where(same, counter);
    }
    candidates -= int64_t(V::sum(V::counted(counter)));
  }
  if (count_below<V>(values, end, infinity) < candidates) return T(__builtin_nan(""));
  const int64_t r = int64_t(q * double(candidates));
  if (r == 0) return -infinity;
  if (r == candidates) return infinity;
  // Fewer than r are below the number at `low`, and r or more, `below`, below that at `high`.
  Place high = __builtin_bit_cast(Place, T(2)), low = ~high;
  int64_t below = candidates;
  while (below != r && low + 1 < high) {
    const Place middle = (low + high) >> 1;
    const int64_t count = count_below<V>(values, end, number_at<T>(middle));
    if (count < r) {
      low = middle;
    } else {
      high = middle;
      below = count;
    }
  }
  const auto bound = V::broadcast(number_at<T>(high)), none = V::broadcast(-infinity);
  auto largest_below = none, least_above = none;  // the latter as its negative
  for (int64_t k = 0; k < end; k += V::kLanes) {
    const auto x = V::load(values + k);
    const auto is_below = V::greater(bound, x);
    largest_below = V::max(largest_below, V::select(is_below, x, none));
    least_above = V::max(least_above, V::select(is_below, none, V::broadcast(0) - x));
  }
  const T smaller = V::maximum(largest_below), larger = below == r ? -V::maximum(least_above) : smaller;
  const T middle = (smaller + larger) / 2;
  return middle < larger ? middle : smaller;  // between neighbouring floats there is none
}

}  // namespace
