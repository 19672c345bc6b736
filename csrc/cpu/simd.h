// Vectors of one instruction set. A vector class `V` has
//   Scalar, Reg, Mask, kLanes, and the static functions below; `+ - * / []` work on Reg, `& ~` on Mask.
//   fused: a * b + c; multiply_add: the same, or the step of a product of pairs where kPack is 2.
//   kPack: numbers a lane of a packed operand holds (1; 2 where a lane is a pair of bfloat16).
//   kRounded: packed rows are rounded to bfloat16.
//   kTiles: operands are the tiles of amx.h, whose unit multiplies beside the vectors.
//   kSymmetric: a product of two rows has the same bits whichever is on the left.
//   kRows, kPanelVectors: the register tile of product.h, as many sums as keep the unit busy.
//   kIncrements: so many of counters (histogram.h) go beside a step of a product.
//   layout(dim): sizes of the packed rows.
//   Session: lives as long as a kernel works.
// Everything here has internal linkage: each instruction set keeps its own copy.
#pragma once
#include "kernels.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

// The work beside a product, where there is none.
struct Nothing {
  Nothing next(int64_t) const { return {}; }
  void operator()(int64_t) const {}
};

using namespace arec::cpu;

// The kernels' own square tiles: what is in work at a time is to fit the first cache.
#if defined(__AMX_BF16__)
constexpr int64_t kSide = 32;
#else
constexpr int64_t kSide = kTile;
#endif

// Layout::width.
inline int64_t row_width(int64_t dim, int64_t step) {
  const int64_t width = (dim + step - 1) / step * step;
  return width >= 128 ? width | step : width;
}

// Of the instruction sets whose products are multiply-adds of vectors.
struct MultiplyAdds {
  static constexpr int kPack = 1;
  static constexpr bool kRounded = false, kTiles = false, kSymmetric = true;
  static constexpr int kIncrements = 4;  // one for each two cycles of an 8 x 32 product
  struct Session {
    Session() {}
  };
  static Layout layout(int64_t dim) { return packed(dim, 1); }
  static Layout packed(int64_t dim, int64_t pack) {
    Layout z{};
    z.depth = (dim + pack - 1) / pack;
    z.width = row_width(dim, 16);
    z.row_lanes = z.width / pack;
    z.panel_lanes = z.depth;
    if (pack == 2) z.pair_lanes = z.width / 2;
    return z;
  }
};

// The compiler's vector extension: SSE2, AVX2, NEON, whatever the flags of this source allow.
template <class T, class Int, int lanes>
struct Generic : MultiplyAdds {
  using Scalar = T;
  typedef T Reg __attribute__((vector_size(lanes * sizeof(T))));
  typedef Int Mask __attribute__((vector_size(lanes * sizeof(T))));  // all bits of a lane set: true
  static constexpr int kLanes = lanes;
#if defined(__aarch64__)  // 32 registers, and up to four multiply-adds a cycle of four cycles each
  static constexpr int kRows = 4, kPanelVectors = 4;
#else
  static constexpr int kRows = 4, kPanelVectors = 2;
#endif
  static constexpr int kIncrements = 2;  // one for each two cycles of a 4 x 16 product

  // By a type of its own: on ARM gcc 12 copies the 16 bytes of a memcpy by way of integer registers.
  typedef T Unaligned __attribute__((vector_size(lanes * sizeof(T)), aligned(alignof(T)), may_alias));
  static Reg load(const T* p) { return *(const Unaligned*)p; }
  static void store(T* p, Reg x) { *(Unaligned*)p = x; }
  static Reg broadcast(T x) { return x - Reg{}; }  // free; x + 0 is not: it makes 0 of -0
  static Reg iota(T start) {
    Reg x;
    for (int lane = 0; lane < lanes; ++lane) x[lane] = start + T(lane);
    return x;
  }
  static Reg multiply_add(Reg a, Reg b, Reg c) { return a * b + c; }
  static Reg fused(Reg a, Reg b, Reg c) { return a * b + c; }
  static Mask greater(Reg a, Reg b) { return a > b; }  // false for NaN
  static Mask not_greater(Reg a, Reg b) { return ~(a > b); }
  static Mask equal(Reg a, Reg b) { return a == b; }  // false for NaN
  static Reg add_where(Mask m, Reg a, Reg b) { return a + zero_unless(m, b); }
  static Reg zero_unless(Mask m, Reg a) { return (Reg)((Mask)a & m); }
  // Counters are integers in the bits of a Reg: adds on units that the float sums leave alone.
  static Reg count_where(Mask m, Reg counter) { return (Reg)((Mask)counter - m); }
  static Reg counted(Reg counter) { return __builtin_convertvector((Mask)counter, Reg); }
  static Reg select(Mask m, Reg a, Reg b) { return m ? a : b; }
  static Reg max(Reg a, Reg b) { return a > b ? a : b; }  // b where either is NaN
  static Reg min(Reg a, Reg b) { return a < b ? a : b; }  // b where either is NaN
  static Reg abs(Reg a) { return a < 0 ? -a : a; }
  static T sum(Reg x) {  // of halves, so that no addition waits for more than log2(lanes) others
#pragma GCC unroll 4
    for (int half = lanes / 2; half > 0; half /= 2) {
      const Reg whole = x;
      for (int lane = 0; lane < half; ++lane) x[lane] = whole[lane] + whole[lane + half];
    }
    return x[0];
  }
  static void add_lanes(double* totals, Reg x) {
    for (int lane = 0; lane < lanes; ++lane) totals[lane] += x[lane];
  }
  static void add_sums_of_4(double* totals, Reg a, Reg b, Reg c, Reg d) {
    const T sums[] = {sum(a), sum(b), sum(c), sum(d)};
    for (int k = 0; k < 4; ++k) totals[k] += sums[k];
  }
  // The (kLanes, kLanes) matrix at `from`, transposed.
  static void transpose(const T* from, int64_t from_row, T* to, int64_t to_row) {
    for (int r = 0; r < lanes; ++r)
      for (int c = 0; c < lanes; ++c) to[c * to_row + r] = from[r * from_row + c];
  }
  static T maximum(Reg x) {
    T best = x[0];
    for (int lane = 1; lane < lanes; ++lane) best = x[lane] > best ? x[lane] : best;
    return best;
  }
  // p * 2^n, where the low bits of `n` (a float holding 1.5 * 2^23 + n) are the integer n.
  static Reg scale_by_power(Reg p, Reg n) { return (Reg)((Mask)p + ((Mask)n << 23)); }
  // Rounded towards zero; `nan` in place of NaN.
  static void store_integers(uint32_t* p, Reg x, T nan) {
    const Mask integers = __builtin_convertvector(select(equal(x, x), x, broadcast(nan)), Mask);
    for (int lane = 0; lane < lanes; ++lane) p[lane] = uint32_t(integers[lane]);
  }
};

#if defined(__AVX512F__)
struct Avx512 : MultiplyAdds {
  using Scalar = float;
  using Reg = __m512;
  using Mask = __mmask16;
  static constexpr int kLanes = 16;
  static constexpr int kRows = 8, kPanelVectors = 2;

  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Reg x) { _mm512_storeu_ps(p, x); }
  static Reg broadcast(float x) { return _mm512_set1_ps(x); }
  static Reg iota(float start) {
    return _mm512_set1_ps(start) +
           _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
  static Reg multiply_add(Reg a, Reg b, Reg c) { return fused(a, b, c); }
  static Reg fused(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Mask greater(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  // Its own comparison: mask registers are turned over one at a time.
  static Mask not_greater(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_NGT_UQ); }
  static Mask equal(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static Reg add_where(Mask m, Reg a, Reg b) { return _mm512_mask_add_ps(a, m, a, b); }
  static Reg zero_unless(Mask m, Reg a) { return _mm512_maskz_mov_ps(m, a); }
  static Reg count_where(Mask m, Reg counter) {
    const __m512i old = _mm512_castps_si512(counter);
    return _mm512_castsi512_ps(_mm512_mask_add_epi32(old, m, old, _mm512_set1_epi32(1)));
  }
  static Reg counted(Reg counter) { return _mm512_cvtepi32_ps(_mm512_castps_si512(counter)); }
  static Reg select(Mask m, Reg a, Reg b) { return _mm512_mask_blend_ps(m, b, a); }
  static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }  // b where either is NaN
  static Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }  // b where either is NaN
  static Reg abs(Reg a) { return _mm512_abs_ps(a); }
  static float sum(Reg x) { return _mm512_reduce_add_ps(x); }
  static void add_lanes(double* totals, Reg x) {
    for (int half = 0; half < 2; ++half) {
      const __m256 part = half ? _mm512_extractf32x8_ps(x, 1) : _mm512_castps512_ps256(x);
      _mm512_storeu_pd(totals + 8 * half, _mm512_loadu_pd(totals + 8 * half) + _mm512_cvtps_pd(part));
    }
  }
  static void add_sums_of_4(double* totals, Reg a, Reg b, Reg c, Reg d) {
    // A transposition that adds on the way.
    const __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b)),
                  cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d));
    const __m512 quads = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)) +
                         _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
    const __m256 half = _mm512_castps512_ps256(quads) + _mm512_extractf32x8_ps(quads, 1);
    const __m128 sums = _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
    _mm256_storeu_pd(totals, _mm256_loadu_pd(totals) + _mm256_cvtps_pd(sums));
  }
  static void transpose(const float* from, int64_t from_row, float* to, int64_t to_row) {
    Reg a[16], b[16];
    for (int k = 0; k < 16; ++k) a[k] = load(from + k * from_row);
#pragma GCC unroll 8
    for (int k = 0; k < 16; k += 2) {
      b[k] = _mm512_unpacklo_ps(a[k], a[k + 1]);
      b[k + 1] = _mm512_unpackhi_ps(a[k], a[k + 1]);
    }
    // a[4 q + c]: of rows 4 q to 4 q + 3, column 4 l + c in 128-bit lane l
#pragma GCC unroll 8
    for (int k = 0; k < 16; k += 4)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const __m512d x = _mm512_castps_pd(b[k + h]), y = _mm512_castps_pd(b[k + 2 + h]);
        a[k + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
        a[k + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
      }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const Reg even0 = _mm512_shuffle_f32x4(a[c], a[4 + c], 0x88),
                odd0 = _mm512_shuffle_f32x4(a[c], a[4 + c], 0xdd),
                even1 = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0x88),
                odd1 = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0xdd);
      store(to + c * to_row, _mm512_shuffle_f32x4(even0, even1, 0x88));
      store(to + (8 + c) * to_row, _mm512_shuffle_f32x4(even0, even1, 0xdd));
      store(to + (4 + c) * to_row, _mm512_shuffle_f32x4(odd0, odd1, 0x88));
      store(to + (12 + c) * to_row, _mm512_shuffle_f32x4(odd0, odd1, 0xdd));
    }
  }
  static float maximum(Reg x) { return _mm512_reduce_max_ps(x); }
  static Reg scale_by_power(Reg p, Reg n) {
    return _mm512_castsi512_ps(_mm512_add_epi32(
        _mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
  }
  static void store_integers(uint32_t* p, Reg x, float nan) {  // NaN becomes 2^31, above all bins
    _mm512_storeu_si512(p, _mm512_min_epu32(_mm512_cvttps_epi32(x), _mm512_set1_epi32(int(nan))));
  }
};
#endif

#if defined(__AVX512BF16__)
// Operands are pairs of bfloat16, sums are float: two products a lane and instruction.
struct Avx512Bf16 : Avx512 {
  static constexpr int kPack = 2;
  static constexpr bool kRounded = true;
  static Layout layout(int64_t dim) { return packed(dim, kPack); }
  static Reg multiply_add(Reg a, Reg b, Reg c) {
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
  }

  // A tile of G rounded to pairs along its rows (left) and along its columns (right).
  static void pack_pairs(const float* g, float* left, float* right) {
    constexpr int64_t size = kSide;
    for (int64_t r = 0; r < size; r += 2)
      for (int64_t c = 0; c < size; c += 32) {
        __m512i rows[2];
        for (int k = 0; k < 2; ++k) {
          const float* const row = g + (r + k) * size + c;
          rows[k] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + 16), _mm512_loadu_ps(row));
          _mm512_storeu_si512(left + ((r + k) * size + c) / 2, rows[k]);
        }
        for (int half = 0; half < 2; ++half) {
          const __m512i low = _mm512_cvtepu16_epi32(
              half ? _mm512_extracti64x4_epi64(rows[0], 1) : _mm512_castsi512_si256(rows[0]));
          const __m512i high = _mm512_cvtepu16_epi32(
              half ? _mm512_extracti64x4_epi64(rows[1], 1) : _mm512_castsi512_si256(rows[1]));
          _mm512_storeu_si512(right + r / 2 * size + c + 16 * half,
                              _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
      }
  }
};
#endif

// 2^x of x = s * scale - shift to 2 ulp for -126 <= x < 128; NaN stays NaN. `shift` is a whole number.
// 2^x = 2^n 2^f with n = round(x), |f| <= 1/2; adding 1.5 * 2^23 rounds to the integer n and leaves it in
// the low bits. As 1.5 * 2^23 - shift is exact, x itself, and its rounding, are never needed: f is exact
// to an ulp of its own. The polynomial minimises the error in ulp with the constant term fixed, so that
// 2^0 is exactly 1; without a fused multiply-add one more degree makes up for the additional roundings.
template <class V>
inline typename V::Reg exp2(typename V::Reg s, typename V::Scalar scale, typename V::Scalar shift) {
  if constexpr (sizeof(typename V::Scalar) == 8) {
    for (int lane = 0; lane < V::kLanes; ++lane) s[lane] = __builtin_exp2(s[lane] * scale - shift);
    return s;
  } else {
    const auto factor = V::broadcast(scale), round = V::broadcast(12582912.0f - shift);
    const auto n = V::fused(s, factor, round);
    const auto f = V::fused(s, factor, round - n);
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    auto p = 0.00132257072f * f + 0.00967176259f;
    p = p * f + 0.0555089153f;
    p = p * f + 0.240222365f;
    p = p * f + 0.693146825f;
#else
    auto p = 0.000153533620f * f + 0.00133988745f;
    p = p * f + 0.00961843736f;
    p = p * f + 0.0555033247f;
    p = p * f + 0.240226479f;
    p = p * f + 0.693147203f;
#endif
    p = p * f + 1.0f;
    return V::scale_by_power(p, n);
  }
}

// The same for any x, held to whole powers that are normal numbers (in float -126 to 127): 0 times the result
// is never NaN but for NaN.
template <class V>
inline typename V::Reg exp2_any(typename V::Reg x) {
  constexpr int largest = sizeof(typename V::Scalar) == 8 ? 1023 : 127;
  return exp2<V>(V::min(V::broadcast(largest), V::max(V::broadcast(1 - largest), x)), 1, 0);
}

}  // namespace
