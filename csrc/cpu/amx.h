// Products of bfloat16 on AMX tiles (Intel, from Sapphire Rapids on): an instruction adds 16 x 16 sums of
// 16 pairs each, sixteen times the rate of float multiply-adds. The operands are those of pairs
// (Avx512Bf16), with rows and panels padded to whole tiles.
#pragma once
#include "kernels.h"
#include "simd.h"

#if defined(__AMX_BF16__)
namespace {

struct Amx : Avx512Bf16 {
  static constexpr int kDepthStep = 16;
  static constexpr int kRows = 32, kPanelVectors = 4;
  static constexpr int kIncrements = 32;

  // The tile registers, all of 16 rows of 16 lanes, while the object lives.
  struct Session {
    Session() {
      static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
      } configuration = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
      _tile_loadconfig(&configuration);
    }
    ~Session() { _tile_release(); }
  };
};

// C (32, 16 n) = or += A B over `steps` tiles of depth; rows of the operands are a_row and b_row lanes
// apart. beside() is called once a step.
template <int n, bool accumulate, class Beside>
inline void tile_product(const float* a, int64_t a_row, const float* b, int64_t b_row, int64_t steps,
                         float* c, int64_t c_row, Beside beside) {
  const int64_t a_bytes = a_row * 4, b_bytes = b_row * 4, c_bytes = c_row * 4;
  float* const below = c + 16 * c_row;
  asm volatile("" ::: "memory");  // gcc does not know that tile loads read memory
  if constexpr (accumulate) {
    _tile_loadd(0, c, c_bytes);
    _tile_loadd(2, below, c_bytes);
    if constexpr (n == 2) {
      _tile_loadd(1, c + 16, c_bytes);
      _tile_loadd(3, below + 16, c_bytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < steps; ++step, a += 16, b += 16 * b_row) {
    _tile_loadd(4, a, a_bytes);
    _tile_loadd(5, a + 16 * a_row, a_bytes);
    _tile_loadd(6, b, b_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (n == 2) {
      _tile_loadd(7, b + 16, b_bytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
    beside();
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(2, below, c_bytes);
  if constexpr (n == 2) {
    _tile_stored(1, c + 16, c_bytes);
    _tile_stored(3, below + 16, c_bytes);
  }
}

// S (32, kTile): rows [row, row + 32) of z times the columns of a panel.
template <class Beside>
inline void similarities(Amx, const Embeddings<float>& z, int64_t row, int64_t column, float* s,
                         int64_t s_row, Beside beside) {
  const int64_t stride = z.width / 2;
  int64_t done = 0;  // of the z.depth portions of the work beside
  for (int64_t c = 0; c < kTile; c += 32)
    tile_product<2, false>(z.rows + row * stride, stride, z.panels + column * z.depth + c, kTile,
                           z.depth / 16, s + c, s_row, [&] {
                             for (int k = 0; k < 8; ++k) beside(done++);
                           });
}

// C (kTile, dim) += A B, A (kTile, kTile / 2) pairs along the rows of a tile of G, B pairs of rows of z.
inline void add_tile_product(const float* a, const float* b, const Embeddings<float>& z, float* c) {
  constexpr int64_t a_row = kTile / 2, steps = kTile / 32;
  const auto nothing = [] {};
  for (int64_t r = 0; r < kTile; r += 32, a += 32 * a_row, c += 32 * z.width) {
    int64_t d = 0;
    for (; d + 16 < z.dim; d += 32)
      tile_product<2, true>(a, a_row, b + d, z.width, steps, c + d, z.width, nothing);
    if (d < z.dim)
      tile_product<1, true>(a, a_row, b + d, z.width, steps, c + d, z.width, nothing);
  }
}

// The gradients of a tile's rows and columns, from its G.
inline void add_gradients(Amx, const Backward<float>& p, int64_t row, int64_t column, float* g) {
  constexpr int64_t pairs = kTile / 2;
  const auto& z = p.pairs.z;
  alignas(64) float along[kTile * pairs], across[pairs * kTile], transposed[kTile * pairs];
  Amx::pack_pairs(g, along, across);
  for (int64_t r = 0; r < pairs; r += 16)
    for (int64_t c = 0; c < kTile; c += 16)
      Amx::transpose(across + r * kTile + c, kTile, transposed + c * pairs + r, pairs);
  add_tile_product(along, z.row_pairs + column / 2 * z.width, z, p.gradient + row * z.width);
  add_tile_product(transposed, z.row_pairs + row / 2 * z.width, z, p.gradient + column * z.width);
}

}  // namespace
#endif
