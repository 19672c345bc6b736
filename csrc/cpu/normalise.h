// Rows to unit length and into the layouts of the products, and the gradient back through it.
#pragma once
#include "product.h"

namespace {

struct Float32 {
  using Value = float;
  static float load(const void* p, int64_t i) { return ((const float*)p)[i]; }
  static void store(void* p, int64_t i, float x) { ((float*)p)[i] = x; }
  static float round(float x) { return x; }
};
struct Float64 {
  using Value = double;
  static double load(const void* p, int64_t i) { return ((const double*)p)[i]; }
  static void store(void* p, int64_t i, double x) { ((double*)p)[i] = x; }
  static double round(double x) { return x; }
};
struct BFloat16 {
  using Value = float;
  static float widen(uint16_t x) { return __builtin_bit_cast(float, uint32_t(x) << 16); }
  static uint16_t narrow(float x) {  // to the nearest, ties to even; NaN stays NaN
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    return x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
  static float load(const void* p, int64_t i) { return widen(((const uint16_t*)p)[i]); }
  static void store(void* p, int64_t i, float x) { ((uint16_t*)p)[i] = narrow(x); }
  static float round(float x) { return widen(narrow(x)); }
};
// In integers, since not every compiler has a type for it, and without arithmetic on subnormal floats,
// which a processor may be set to take for zero.
struct Float16 {
  using Value = float;
  static float widen(uint16_t x) {
    const uint32_t sign = uint32_t(x & 0x8000) << 16, magnitude = x & 0x7fff;
    const uint32_t normal = (magnitude << 13) + (magnitude < 0x7c00 ? 112u << 23 : 224u << 23),
                   subnormal = __builtin_bit_cast(uint32_t, float(int32_t(magnitude)) * 0x1p-24f);
    return __builtin_bit_cast(float, sign | (magnitude < 0x400 ? subnormal : normal));
  }
  static uint16_t narrow(float x) {  // to the nearest, ties to even; NaN stays NaN
    const uint32_t bits = __builtin_bit_cast(uint32_t, x), magnitude = bits & 0x7fffffff;
    // Beside 1/2 the last digit is that of the smallest numbers.
    const float beside_half = __builtin_bit_cast(float, magnitude) + 0.5f;
    const uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13,
                   subnormal = __builtin_bit_cast(uint32_t, beside_half) - (126u << 23),
                   infinite = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    return uint16_t(bits >> 16 & 0x8000) | uint16_t(magnitude >= 0x47800000   ? infinite
                                                    : magnitude < 0x38800000 ? subnormal
                                                                             : normal);
  }
  static float load(const void* p, int64_t i) { return widen(((const uint16_t*)p)[i]); }
  static void store(void* p, int64_t i, float x) { ((uint16_t*)p)[i] = narrow(x); }
  static float round(float x) { return widen(narrow(x)); }
};

// term(0) + ... + term(count - 1) in eight chains, which the compiler turns into vectors.
template <class F>
inline double sum_in_lanes(int64_t count, F term) {
  double sums[8] = {};
  int64_t d = 0;
  for (; d + 8 <= count; d += 8)
    for (int lane = 0; lane < 8; ++lane) sums[lane] += term(d + lane);
  for (; d < count; ++d) sums[0] += term(d);
  for (int half = 4; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

// Norm of a row as scaled_norm / scale with a power of two `scale`: no finite row overflows.
struct Norm {
  double scaled, scale;
};

template <class E>
Norm row_norm(const void* z, int64_t offset, int64_t dim) {
  double scale = 1;
  if constexpr (sizeof(typename E::Value) == 8) {  // squares of anything narrower fit a double
    double largest = 0;
    for (int64_t d = 0; d < dim; ++d) {
      const double x = __builtin_fabs(E::load(z, offset + d));
      largest = x > largest ? x : largest;
    }
    if (largest > 0 && largest < __builtin_inf()) scale = __builtin_ldexp(1, -__builtin_ilogb(largest));
    if (scale == __builtin_inf()) scale = 0x1p1023;  // subnormal numbers
  }
  const double total = sum_in_lanes(dim, [&](int64_t d) {
    const double x = E::load(z, offset + d) * scale;
    return x * x;
  });
  return {__builtin_sqrt(total), scale};
}

// What stands in lanes of packed rows, which are read as floats.
typedef uint16_t Half __attribute__((may_alias));
typedef uint32_t Pair __attribute__((may_alias));

// The numbers of a row at unit length, not yet rounded to the type of z. In a row of NaN every one is that
// of __builtin_nan, whose low bits are 0: exp2 adds them to the exponent.
template <class E>
struct UnitRow {
  const void* values;
  int64_t offset, dim;
  double factor, scale;

  typename E::Value operator[](int64_t d) const {
    using T = typename E::Value;
    return T(factor == factor ? E::load(values, offset + d) * scale * factor : factor);
  }
};

// Row i; sets its inverse_norm.
template <class E, class T>
UnitRow<E> unit_row(const Embeddings<T>& z, int64_t i) {
  UnitRow<E> row{z.z, i * z.dim, i < z.n ? z.dim : 0, 0, 1};
  if (i < z.n) {
    const Norm norm = row_norm<E>(z.z, row.offset, z.dim);
    row.scale = norm.scale;
    if (!(norm.scaled < kZeroNorm * norm.scale)) row.factor = 1 / norm.scaled;
    if (!(norm.scaled < __builtin_inf())) row.factor = __builtin_nan("");  // infinite rows are NaN, not zero
  }
  z.inverse_norm[i] = row.factor * row.scale;
  return row;
}

// Whole tiles of rows.
template <class E, class V, class T>
void pack_unit_rows(V, const Embeddings<T>& z, Rows rows) {
  constexpr int pack = V::kPack;
  const int64_t stride = z.row_lanes;
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    T* const __restrict row = z.rows + i * stride;
    Half* const __restrict halves = (Half*)row;
    const UnitRow<E> unit = unit_row<E>(z, i);
    if constexpr (pack == 1) {
      for (int64_t d = 0; d < unit.dim; ++d) row[d] = E::round(unit[d]);
      for (int64_t d = unit.dim; d < z.width; ++d) row[d] = 0;
    } else {
      for (int64_t d = 0; d < unit.dim; ++d) halves[d] = BFloat16::narrow(unit[d]);
      for (int64_t d = unit.dim; d < z.width; ++d) halves[d] = 0;
      if (z.row_pairs && i % 2 == 1) {
        const Half *const even = halves - z.width, *const odd = halves;
        Pair* const __restrict pairs = (Pair*)(z.row_pairs + i / 2 * z.width);
        for (int64_t d = 0; d < z.width; ++d) pairs[d] = even[d] | uint32_t(odd[d]) << 16;
      }
    }
  }
  for (int64_t i = rows.begin; i < rows.end; i += V::kLanes) {
    const T* const from = z.rows + i * stride;
    T* const panel = z.panels + i / kPanel<V> * kPanel<V> * z.depth + i % kPanel<V>;
    int64_t d = 0;
    for (; d + V::kLanes <= z.depth; d += V::kLanes)
      V::transpose(from + d, stride, panel + d * kPanel<V>, kPanel<V>);
    for (; d < z.depth; ++d)
      for (int r = 0; r < V::kLanes; ++r) panel[d * kPanel<V> + r] = from[r * stride + d];
  }
}

#if defined(__AMX_BF16__)
template <class E, int parts>
void pack_unit_rows(Amx<parts>, const Embeddings<float>& z, Rows rows) {
  alignas(64) float x[kSide][kSide];
  UnitRow<E> units[kSide];
  for (int64_t row = rows.begin; row < rows.end; row += kSide) {
    for (int64_t r = 0; r < kSide; ++r) units[r] = unit_row<E>(z, row + r);
    for (int64_t step = 0; step < z.depth; ++step) {
      for (int64_t r = 0; r < kSide; ++r) {
        const UnitRow<E> unit = units[r];  // which no store below changes
        const int64_t begin = step * kSide, end = unit.dim < begin + kSide ? unit.dim : begin + kSide;
        for (int64_t d = begin; d < end; ++d) x[r][d - begin] = E::round(unit[d]);
        for (int64_t d = end < begin ? begin : end; d < begin + kSide; ++d) x[r][d - begin] = 0;
      }
      pack_rows<parts>(z, row, step, x[0]);
    }
  }
}
#endif

// dz = upstream_scale (dẑ - (dẑ . ẑ) ẑ) / |z|
template <class E, class T>
void normalise_backward_rows(const Backward<T>& p, Rows rows) {
  const auto& z = p.pairs.z;
  for (int64_t i = rows.begin; i < rows.end && i < z.n; ++i) {
    const double inverse = z.inverse_norm[i];
    if (inverse == 0) {
      for (int64_t d = 0; d < z.dim; ++d) E::store(p.grad_z, i * z.dim + d, 0);
      continue;
    }
    const double outer = p.upstream_scale * inverse;
    double factor = inverse;
    if constexpr (sizeof(T) == 8) {  // 1 / |z| may have lost digits
      const Norm norm = row_norm<E>(z.z, i * z.dim, z.dim);
      factor = norm.scale / norm.scaled;
    }
    const T* const gradient = p.gradient + i * z.width;
    const double dot = sum_in_lanes(z.dim, [&](int64_t d) {
      return double(gradient[d]) * (E::load(z.z, i * z.dim + d) * factor);
    });
    for (int64_t d = 0; d < z.dim; ++d) {
      const double unit = E::load(z.z, i * z.dim + d) * factor;
      E::store(p.grad_z, i * z.dim + d, T((double(gradient[d]) - dot * unit) * outer));
    }
  }
}

template <class T, class F>
void with_element(Element element, F f) {
  if constexpr (sizeof(T) == 8) return f(Float64{});
  else if (element == Element::kFloat32) f(Float32{});
  else if (element == Element::kBFloat16) f(BFloat16{});
  else f(Float16{});
}

template <class V, class T>
void normalise(const Embeddings<T>& z, Rows rows) {
  if constexpr (V::kRounded) pack_unit_rows<BFloat16>(V{}, z, rows);
  else with_element<T>(z.element, [&](auto e) { pack_unit_rows<decltype(e)>(V{}, z, rows); });
}

template <class V, class T>
void normalise_backward(const Backward<T>& p, Rows rows) {
#if defined(__AMX_BF16__)
  if constexpr (V::kTiles)
    for (int64_t row = rows.begin; row < rows.end; row += kSide) add_transposed(p, row);
#endif
  with_element<T>(p.pairs.z.element,
                  [&](auto e) { normalise_backward_rows<decltype(e)>(p, rows); });
}

}  // namespace
