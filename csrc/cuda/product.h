// Products on the tensor cores, a warp at a time: similarities Z_I Z_J^T, and gradients G Z_J. A warp has
// kFragment rows a block, and all columns of a tile; every similarity is summed over D in the same order
// wherever in a tile it stands, so that s_ij == s_ji, and forward and backward see the same bits.
#pragma once
#include <machine.h>

namespace arec::cuda {

constexpr int kFragment = 16;  // rows of a product
constexpr int kEight = 8;      // its columns

__device__ __forceinline__ int warp() { return threadIdx.x / 32; }
__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
// A lane's place in a fragment of sums (16, 8): the numbers [0, 2) are columns pair() and pair() + 1 of row
// quad(), [2, 4) those of row quad() + 8.
__device__ __forceinline__ int quad() { return lane() / 4; }
__device__ __forceinline__ int pair() { return lane() % 4 * 2; }

// Tensor cores cut off the sums they return, always towards zero: a sum of many products is made of short
// ones, added in the usual way.

// Sums of a product whose operands are exact.
struct Sum {
  float total[4];
  __device__ __forceinline__ float operator[](int e) const { return total[e]; }
  __device__ __forceinline__ void operator+=(const Sum& other) {
#pragma unroll
    for (int e = 0; e < 4; ++e) total[e] += other.total[e];
  }
};

// The sum of three products of TF32 numbers, which together have the precision of float32. The two small
// ones change places when rows and columns do, so they are added first.
struct SplitSum {
  float high[4], left[4], right[4];
  __device__ __forceinline__ float operator[](int e) const { return high[e] + (left[e] + right[e]); }
  __device__ __forceinline__ void operator+=(const SplitSum& other) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      high[e] += other.high[e];
      left[e] += other.left[e];
      right[e] += other.right[e];
    }
  }
};

// float32 as a TF32 number, the nearest, and what it leaves over, which the tensor cores cut to another one.
// In integers, for it is done with every operand; a NaN may be lost from `high`, and then is in `low`.
struct Split {
  uint32_t high, low;
  __device__ __forceinline__ explicit Split(float x) {
    high = (__float_as_uint(x) + 0x1000) & 0xffffe000;
    low = __float_as_uint(x - __uint_as_float(high));
  }
};

// A fragment of a left operand of TF32 products, rounded or split, and a product with it.
struct RoundedLeft {
  uint32_t number[4];
  __device__ __forceinline__ void set(int i, float x) { number[i] = to_tf32(x); }
  __device__ __forceinline__ void add_product(float (&sum)[4], uint32_t b0, uint32_t b1) const {
    multiply_tf32(sum, number, b0, b1);
  }
};
struct SplitLeft {
  uint32_t high[4], low[4];
  __device__ __forceinline__ void set(int i, float x) {
    const Split split(x);
    high[i] = split.high;
    low[i] = split.low;
  }
  __device__ __forceinline__ void add_product(float (&sum)[4], Split b0, Split b1) const {
    multiply_tf32(sum, low, b0.high, b1.high);
    multiply_tf32(sum, high, b0.low, b1.low);
    multiply_tf32(sum, high, b0.high, b1.high);
  }
};

// How numbers of one type are kept as unit rows and multiplied. In shared memory every row is followed by
// kPad numbers: the rows that a warp reads at once then start in different banks.

template <class F>
struct Halves {
  using Unit = uint16_t;
  using Sums = Sum;
  static constexpr int kPad = 8;
  static constexpr int kColumns = 64;  // of a tile
  static constexpr int kDepth = 16;    // of one product

  // sums += rows [0, 16 blocks) times columns [0, kColumns), over kDepth numbers.
  template <int blocks>
  __device__ __forceinline__ static void add_similarities(Sum (&sums)[blocks][kColumns / kEight],
                                                          const Unit* rows, const Unit* columns, int stride) {
    uint32_t a[blocks][4];
#pragma unroll
    for (int block = 0; block < blocks; ++block)
      load_matrices<false>(a[block], rows + (block * kFragment + lane() % 16) * stride + lane() / 16 * 8);
#pragma unroll
    for (int c = 0; c < kColumns / kEight; c += 2) {
      uint32_t b[4];
      load_matrices<false>(b, columns + (c * kEight + lane() / 16 * 8 + lane() % 8) * stride + lane() / 8 % 2 * 8);
#pragma unroll
      for (int block = 0; block < blocks; ++block) {
        F::multiply(sums[block][c].total, a[block], b[0], b[1]);
        F::multiply(sums[block][c + 1].total, a[block], b[2], b[3]);
      }
    }
  }
};

struct BFloat16 : Halves<BFloat16> {
  __device__ __forceinline__ static float widen(uint16_t x) { return from_bf16(x); }
  __device__ __forceinline__ static uint16_t narrow(float x) { return to_bf16(x); }
  __device__ __forceinline__ static void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    multiply_bf16(c, a, b0, b1);
  }
};

struct Float16 : Halves<Float16> {
  __device__ __forceinline__ static float widen(uint16_t x) { return from_fp16(x); }
  __device__ __forceinline__ static uint16_t narrow(float x) { return to_fp16(x); }
  __device__ __forceinline__ static void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    multiply_fp16(c, a, b0, b1);
  }

  // Gradients are products in TF32, which holds every float16: that has no room for the entries of many rows.
  using Left = RoundedLeft;
  __device__ __forceinline__ static uint32_t right(uint16_t x) { return __float_as_uint(widen(x)); }
};

struct Float32 {
  using Unit = float;
  using Sums = SplitSum;
  static constexpr int kPad = 4;
  static constexpr int kColumns = 32;
  static constexpr int kDepth = 8;
  __device__ __forceinline__ static float widen(float x) { return x; }
  __device__ __forceinline__ static float narrow(float x) { return x; }
  using Left = SplitLeft;
  __device__ __forceinline__ static Split right(float x) { return Split(x); }

  template <int blocks>
  __device__ __forceinline__ static void add_similarities(SplitSum (&sums)[blocks][kColumns / kEight],
                                                          const Unit* rows, const Unit* columns, int stride) {
    const int at = quad() * stride + lane() % 4;
    Left a[blocks];
#pragma unroll
    for (int block = 0; block < blocks; ++block)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[block].set(i, rows[at + (block * kFragment + i % 2 * 8) * stride + i / 2 * 4]);
#pragma unroll
    for (int c = 0; c < kColumns / kEight; ++c) {
      const Unit* const column = columns + at + c * kEight * stride;
      const Split b0(column[0]), b1(column[4]);
#pragma unroll
      for (int block = 0; block < blocks; ++block) {
        SplitSum& sum = sums[block][c];
        multiply_tf32(sum.high, a[block].high, b0.high, b1.high);
        multiply_tf32(sum.left, a[block].low, b0.high, b1.high);
        multiply_tf32(sum.right, a[block].high, b0.low, b1.low);
      }
    }
  }
};

// gradients (16 blocks, 8 eights) += G times the columns (8 fragments, 8 eights) of Z_J, in TF32. In G the
// columns of a fragment of sums take an order of their own, in which no number has to go to another lane; the
// rows of the right operand are read in it too.
template <class F, int blocks, int fragments, int eights>
__device__ __forceinline__ void add_gradients(F, float (&gradients)[blocks][eights][4],
                                              const float (&g)[blocks][fragments][4],
                                              const typename F::Unit* columns, int stride) {
  typename F::Left a[blocks][fragments];
#pragma unroll
  for (int block = 0; block < blocks; ++block)
#pragma unroll
    for (int c = 0; c < fragments; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i) a[block][c].set(i, g[block][c][i / 2 + i % 2 * 2]);
#pragma unroll
  for (int d = 0; d < eights; ++d) {
    Sum sums[blocks] = {};
#pragma unroll
    for (int c = 0; c < fragments; ++c) {
      const auto* const row = columns + (c * kEight + pair()) * stride + d * kEight + quad();
      const auto b0 = F::right(row[0]), b1 = F::right(row[stride]);
#pragma unroll
      for (int block = 0; block < blocks; ++block) a[block][c].add_product(sums[block].total, b0, b1);
    }
#pragma unroll
    for (int block = 0; block < blocks; ++block)
#pragma unroll
      for (int e = 0; e < 4; ++e) gradients[block][d][e] += sums[block][e];
  }
}

// The same in bfloat16, which has the range of float32.
template <int blocks, int fragments, int eights>
__device__ __forceinline__ void add_gradients(BFloat16, float (&gradients)[blocks][eights][4],
                                              const float (&g)[blocks][fragments][4],
                                              const uint16_t* columns, int stride) {
#pragma unroll
  for (int c = 0; c < fragments; c += 2) {
    uint32_t a[blocks][4];
#pragma unroll
    for (int block = 0; block < blocks; ++block)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const two = g[block][c + i / 2] + i % 2 * 2;
        a[block][i] = uint32_t(to_bf16(two[0])) | uint32_t(to_bf16(two[1])) << 16;
      }
#pragma unroll
    for (int d = 0; d < eights; d += 2) {
      uint32_t b[4];
      load_matrices<true>(b, columns + (c * kEight + lane() % 16) * stride + d * kEight + lane() / 16 * 8);
#pragma unroll
      for (int block = 0; block < blocks; ++block) {
        multiply_bf16(gradients[block][d], a[block], b[0], b[1]);
        multiply_bf16(gradients[block][d + 1], a[block], b[2], b[3]);
      }
    }
  }
}

}  // namespace arec::cuda
