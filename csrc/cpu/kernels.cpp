// The kernels of one instruction set. setup.py compiles this source once for each: the macro
// AREC_ISA names it and the flags beside choose what the compiler may use. No standard or torch
// header comes in here but those that immintrin.h brings, of which nothing is called: their inline
// functions, built with AVX-512, could become everybody's copy (test_cpu_kernels.py looks for some).
#include "kernels.h"

#include "backward.h"
#include "forward.h"
#include "histogram.h"
#include "normalise.h"
#include "quantile.h"

namespace {

static_assert(kMasked == 8, "all below are combinations of options");

template <class V>
void forward_if(const Forward<typename V::Scalar>& p, Rows rows, Rows columns, uint32_t* counts) {
  static constexpr decltype(&forward<V, 0>) passes[] = {
      forward<V, 0>, forward<V, 1>, forward<V, 2>, forward<V, 3>,
      forward<V, 4>, forward<V, 5>, forward<V, 6>, forward<V, 7>};
  passes[p.pairs.options](p, rows, columns, counts);
}

template <class V>
void backward_if(const Backward<typename V::Scalar>& p, Rows rows, Rows columns) {
  static constexpr decltype(&backward<V, 0>) passes[] = {
      backward<V, 0>, backward<V, 1>, backward<V, 2>, backward<V, 3>,
      backward<V, 4>, backward<V, 5>, backward<V, 6>, backward<V, 7>};
  passes[p.pairs.options](p, rows, columns);
}

template <class V>
void maximum_if(const Forward<typename V::Scalar>& p, Rows rows, Rows columns) {
  if (p.pairs.options & kNegativesOnly) maximum<V, true>(p, rows, columns);
  else maximum<V, false>(p, rows, columns);
}

template <class V>
constexpr Kernels<typename V::Scalar> table() {
  using T = typename V::Scalar;
  return {V::kRows, V::layout, normalise<V, T>, maximum_if<V>, forward_if<V>, backward_if<V>,
          normalise_backward<V, T>, histogram<V>, row_similarities<V>, row_quantile<V>};
}

template <class V>
void exp2_each(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += V::kLanes) V::store(y + i, exp2_any<V>(V::load(x + i)));
}

// The peak: independent chains of multiply-adds that never leave the registers.
template <class V>
double multiply_adds(int64_t repeats) {
  constexpr int chains = 12;  // more than two a cycle need to hide their latency
  typename V::Reg sum[chains];
#pragma GCC unroll 12
  for (int k = 0; k < chains; ++k) sum[k] = V::broadcast(k);
  auto factor = V::broadcast(0.5f);
  for (int64_t i = 0; i < repeats; ++i) {
#pragma GCC unroll 12
    for (int k = 0; k < chains; ++k) sum[k] = V::fused(sum[k], factor, factor);
    asm volatile("" ::: "memory");
  }
  float total = 0;
#pragma GCC unroll 12
  for (int k = 0; k < chains; ++k) total += V::sum(sum[k]);
  asm volatile("" ::"x"(total));
  return 2.0 * V::kLanes * chains * double(repeats);
}

}  // namespace

namespace arec::cpu {

#define AREC_JOIN_(a, b) a##b
#define AREC_JOIN(a, b) AREC_JOIN_(a, b)
#if defined(__AVX512F__)
using Vector = Avx512;
#elif defined(__AVX2__)
using Vector = Generic<float, int32_t, 8>;
#else
using Vector = Generic<float, int32_t, 4>;
extern const Kernels<double> kernels_double = table<Generic<double, int64_t, 2>>();
#endif

#if defined(__AMX_BF16__)
constexpr Kernels<float> kFloat32 = table<Amx<3>>(), kBFloat16 = table<Amx<1>>();
constexpr const Kernels<float>*float32 = &kFloat32, *bfloat16 = &kBFloat16;
#elif defined(__AVX512BF16__)
constexpr Kernels<float> kBFloat16 = table<Avx512Bf16>();
constexpr const Kernels<float>*float32 = nullptr, *bfloat16 = &kBFloat16;
#else
constexpr Kernels<float> kFloat32 = table<Vector>();
constexpr const Kernels<float>*float32 = &kFloat32, *bfloat16 = &kFloat32;
#endif

extern const IsaKernels AREC_JOIN(kernels_, AREC_ISA) = {float32, bfloat16, exp2_each<Vector>,
                                                         multiply_adds<Vector>};

}  // namespace arec::cpu
