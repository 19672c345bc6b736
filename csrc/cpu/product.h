// The register-tiled product that every kernel spends its time in.
#pragma once
#include "amx.h"
#include "kernels.h"
#include "simd.h"

namespace {

template <class V>
constexpr int kPanel = V::kPanelVectors * V::kLanes;  // columns of a register tile

// C (rows of stride c_row, `vectors` vectors wide) = or += A B over `depth` lanes, for V::kRows rows.
// A's element (r, k) is a[r * a_row + k * a_depth], so A may be a transposed tile; row k of B starts
// at b + k * b_depth. Every element of C is one chain of multiply-adds in the order of k, whatever
// the tile around it: so s_ij == s_ji to the bit, in the forward as in the backward pass.
// beside(k) is work for the units that multiply-adds leave idle, a little in each step.
template <class V, int vectors, bool accumulate, class Beside>
__attribute__((noinline)) void product(const typename V::Scalar* a, int64_t a_row, int64_t a_depth,
                                       const typename V::Scalar* b, int64_t b_depth, int64_t depth,
                                       typename V::Scalar* c, int64_t c_row, Beside beside) {
  typename V::Reg sum[V::kRows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < V::kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sum[r][v] = V::broadcast(0);
  for (int64_t k = 0; k < depth; ++k) {
    typename V::Reg right[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) right[v] = V::load(b + v * V::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < V::kRows; ++r) {
      const auto left = V::broadcast(a[r * a_row]);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sum[r][v] = V::multiply_add(left, right[v], sum[r][v]);
    }
    beside(k);
    a += a_depth;
    b += b_depth;
  }
#pragma GCC unroll 8
  for (int r = 0; r < V::kRows; ++r, c += c_row)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      if constexpr (accumulate) sum[r][v] = sum[r][v] + V::load(c + v * V::kLanes);
      V::store(c + v * V::kLanes, sum[r][v]);
    }
}

// S (V::kRows, panel) = rows [row, row + V::kRows) of z times the panel's columns, transposed.
template <class V, class T, class Beside>
inline void similarities(V, const Embeddings<T>& z, int64_t row, int64_t column, T* s,
                         int64_t s_row, Beside beside) {
  product<V, V::kPanelVectors, false>(z.rows + row * z.row_lanes, z.row_lanes, 1,
                                      z.panels + column * z.panel_lanes, kPanel<V>, z.depth, s, s_row,
                                      beside);
}

// Similarities of rows [row, row + V::kRows) with all rows, into out (V::kRows, padded_n).
template <class V>
void row_similarities(const Embeddings<typename V::Scalar>& z, int64_t row,
                      typename V::Scalar* out) {
  using T = typename V::Scalar;
  const typename V::Session session;
  for (int64_t column = 0; column < z.padded_n; column += kPanel<V>) {
    if (V::kSymmetric || column > row) {
      similarities(V{}, z, row, column, out + column, z.padded_n, Nothing{});
      continue;
    }
    alignas(64) T s[V::kRows * kPanel<V>];  // as the tiles have them: the lower row on the left
    similarities(V{}, z, column, row, s, V::kRows, Nothing{});
    if (column + kPanel<V> <= row) {
      for (int64_t r = 0; r < V::kRows; r += V::kLanes)
        for (int64_t c = 0; c < kPanel<V>; c += V::kLanes)
          V::transpose(s + c * V::kRows + r, V::kRows, out + r * z.padded_n + column + c, z.padded_n);
      continue;
    }
    for (int64_t r = 0; r < V::kRows; ++r)
      for (int64_t c = 0; c < kPanel<V>; ++c) {
        const bool lower = column + c <= row + r;
        out[r * z.padded_n + column + c] = lower ? s[c * V::kRows + r] : s[r * V::kRows + c];
      }
  }
}

// Where A is not 0: everywhere, on and above the diagonal, on and below it.
enum class Shape { kFull, kUpper, kLower };

// C (kSide, dim) += A B, A (kSide, kSide) being a tile of G or its transpose, B kSide rows of z.
template <class V, class T>
void add_product(const T* a, int64_t a_row, int64_t a_depth, Shape shape, const T* b,
                 const Embeddings<T>& z, T* c) {
  const int64_t width = z.width, columns = (z.dim + V::kLanes - 1) / V::kLanes * V::kLanes;
  int64_t column = 0;
  const auto add = [&](auto kernel) {
    for (int64_t r = 0; r < kSide; r += V::kRows) {
      const int64_t begin = shape == Shape::kUpper ? r / V::kPack : 0,
                    end = (shape == Shape::kLower ? r + V::kRows : kSide) / V::kPack;
      kernel(a + r * a_row + begin * a_depth, a_row, a_depth, b + column + begin * width, width,
             end - begin, c + r * width + column, width, Nothing{});
    }
  };
  for (; column + kPanel<V> <= columns; column += kPanel<V>)
    add(product<V, V::kPanelVectors, true, Nothing>);
  for (; column < columns; column += V::kLanes) add(product<V, 1, true, Nothing>);
}

}  // namespace
