// Products on AMX tiles (Intel, from Sapphire Rapids on): an instruction adds 16 x 16 sums of 16 pairs of
// bfloat16 each, sixteen times the rate of float multiply-adds. A float32 is the sum of three bfloat16,
// exactly. A product of two floats is that of six pairs of such parts, in 6/16 of the time; the three pairs
// left out are less than float32 rounds away.
//
// Operands are cut into blocks of kSide rows and kSide numbers of a sum: for each part two tiles of 16 x 16
// lanes, contiguous, in the order of use. A left tile is (16 rows, 16 pairs), a right one (16 pairs, 16 rows).
// The numbers of a pair are 16 apart, so that vectors pack them without a shuffle.
#pragma once
#include "kernels.h"
#include "simd.h"

#if defined(__AMX_BF16__)
namespace {

constexpr int64_t kTileLanes = 16 * 16;

// Where the two tiles of a part are in a block: from the first part on in a left one, from the last in a right
// one, as they are used.
constexpr int64_t left_tile(int part, int half) { return (part * 2 + half) * kTileLanes; }
template <int parts>
constexpr int64_t right_tile(int part, int half) {
  return left_tile(parts - 1 - part, half);
}

// `parts`: 1 for bfloat16 input, else 3.
template <int parts>
struct Amx : Avx512 {
  static constexpr int kPack = 2;
  static constexpr bool kRounded = parts == 1, kTiles = true, kSymmetric = parts == 1;
  static constexpr int kRows = kSide, kPanelVectors = kSide / 16;
  static constexpr int64_t kBlock = parts * 2 * kTileLanes;

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

  static Layout layout(int64_t dim) {
    Layout z{};
    z.depth = (dim + kSide - 1) / kSide;
    z.width = row_width(dim, kSide);
    z.transposed = z.depth * kSide;
    z.row_lanes = z.panel_lanes = z.pair_lanes = z.depth * kBlock / kSide;
    return z;
  }
};

// Where the 2 x 2 tiles of a block of sums are: numbers from row to row, to the tile on the right and to the
// one below.
struct BlockSums {
  float* at;
  int64_t row, right, below;
};

// gcc does not know that tile loads and stores read and write memory.
inline void memory_barrier() { asm volatile("" ::: "memory"); }

// C (kSide, kSide) = or += A B, blocks side by side of one step of the sum each.
template <int parts, bool accumulate>
inline void block_product(const float* a, const float* b, int64_t steps, BlockSums c) {
  constexpr int64_t block = Amx<parts>::kBlock;
  const int64_t c_bytes = c.row * 4;
  memory_barrier();
  if constexpr (accumulate) {
    _tile_loadd(0, c.at, c_bytes);
    _tile_loadd(1, c.at + c.right, c_bytes);
    _tile_loadd(2, c.at + c.below, c_bytes);
    _tile_loadd(3, c.at + c.below + c.right, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < steps; ++step, a += block, b += block) {
    const auto left = [&](int part) {
      _tile_loadd(4, a + left_tile(part, 0), 64);
      _tile_loadd(5, a + left_tile(part, 1), 64);
    };
    const auto right = [&](int part) {
      _tile_loadd(6, b + right_tile<parts>(part, 0), 64);
      _tile_loadd(7, b + right_tile<parts>(part, 1), 64);
    };
    const auto multiply = [] {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    };
    if constexpr (parts == 3) {
      left(0), right(2), multiply();
      right(1), multiply();
      left(1), multiply();
      right(0), multiply();
      left(2), multiply();
    } else {
      right(0);
    }
    left(0), multiply();
  }
  _tile_stored(0, c.at, c_bytes);
  _tile_stored(1, c.at + c.right, c_bytes);
  _tile_stored(2, c.at + c.below, c_bytes);
  _tile_stored(3, c.at + c.below + c.right, c_bytes);
  memory_barrier();
}

// S (kSide, kSide): rows of z from `row` on times those from `column` on.
template <int parts>
inline void similarities(Amx<parts>, const Embeddings<float>& z, int64_t row, int64_t column, float* s,
                         int64_t s_row, Nothing) {
  block_product<parts, false>(z.rows + row * z.row_lanes, z.panels + column * z.panel_lanes, z.depth,
                              {s, s_row, 16, 16 * s_row});
}

// The first bfloat16 part of floats, in the upper halves: the nearest one, or that towards 0. NaN stays NaN.
template <bool nearest>
inline __m512 first_part(__m512 x) {
  if constexpr (nearest) {
    __m512 shifted = x * 65537.0f;  // beside it x has no room for the lower half of its digits
    asm("" : "+v"(shifted));        // no fused multiply-add, which would know them
    return shifted - (shifted - x);
  }
  return _mm512_and_ps(x, _mm512_castsi512_ps(_mm512_set1_epi32(int(0xffff0000))));
}

// X (kSide, kSide) as a left block, with pairs along its rows, and, unless `across` is null, as a right one, with
// pairs across them.
template <int parts, bool nearest>
inline void pack_block(const float* x, float* along, float* across) {
  for (int row = 0; row < 16; ++row, x += kSide) {
    __m512 rest[2][2];
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) rest[i][j] = _mm512_loadu_ps(x + 16 * i * kSide + 16 * j);
#pragma GCC unroll 3
    for (int part = 0; part < parts; ++part) {
      __m512i y[2][2];
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j) {
          // After two parts the rest has no more digits than a third.
          const __m512 first = part == 2 ? rest[i][j] : first_part<nearest>(rest[i][j]);
          rest[i][j] = rest[i][j] - first;
          y[i][j] = _mm512_castps_si512(first);
        }
      // The upper halves: a subnormal rest has more digits.
      const auto store = [](float* to, __m512i first, __m512i second) {
        constexpr int or_and = 0xf8;
        _mm512_storeu_si512(to, _mm512_ternarylogic_epi32(_mm512_srli_epi32(first, 16), second,
                                                          _mm512_set1_epi32(int(0xffff0000)), or_and));
      };
      for (int k = 0; k < 2; ++k) {
        store(along + left_tile(part, k) + row * 16, y[k][0], y[k][1]);
        if (across) store(across + right_tile<parts>(part, k) + row * 16, y[0][k], y[1][k]);
      }
    }
  }
}

// The same block for the other side of a product.
template <int parts>
inline void transpose_block(const float* from, float* to) {
  for (int part = 0; part < parts; ++part)
    for (int k = 0; k < 2; ++k)
      Avx512::transpose(from + left_tile(part, k), 16, to + right_tile<parts>(part, k), 16);
}

// Unit rows from `row` on, of whose numbers `x` (kSide, kSide) are those of one step, into the operands.
template <int parts>
inline void pack_rows(const Embeddings<float>& z, int64_t row, int64_t step, const float* x) {
  constexpr int64_t block = Amx<parts>::kBlock;
  const int64_t at = row * z.row_lanes + step * block;
  float* const row_pairs = z.row_pairs ? z.row_pairs + at : nullptr;  // null: the forward pass
  pack_block<parts, true>(x, z.rows + at, row_pairs);
  transpose_block<parts>(z.rows + at, z.panels + at);
  if (row_pairs) transpose_block<parts>(row_pairs, z.column_pairs + at);
}

// The gradients of a tile's rows and, transposed, of its columns, from its G.
template <int parts>
inline void add_gradients(Amx<parts> v, const Backward<float>& p, int64_t row, int64_t column, float* g) {
  const auto& z = p.pairs.z;
  constexpr int64_t block = v.kBlock;
  alignas(64) float along[block], across[block];
  pack_block<parts, parts == 1>(g, along, across);  // three parts are exact either way
  const float* const right = z.row_pairs + column * z.pair_lanes;
  const float* const left = z.column_pairs + row * z.pair_lanes;
  for (int64_t d = 0; d < z.depth; ++d)
    block_product<parts, true>(along, right + d * block, 1,
                               {p.gradient + row * z.width + d * kSide, z.width, 16, 16 * z.width});
  for (int64_t d = 0; d < z.depth; ++d)
    block_product<parts, true>(left + d * block, across, 1,
                               {p.transposed + column * z.transposed + d * kSide * kSide, 16, kTileLanes,
                                2 * kTileLanes});
}

// Adds what the products above summed transposed to the gradient of rows [row, row + kSide).
inline void add_transposed(const Backward<float>& p, int64_t row) {
  const auto& z = p.pairs.z;
  alignas(64) float tile[16][16];
  for (int64_t d = 0; d < z.transposed; d += 16) {
    const float* const block = p.transposed + row * z.transposed + d / kSide * kSide * kSide;
    for (int64_t r = 0; r < kSide; r += 16) {
      Avx512::transpose(block + (d % kSide / 16 * 2 + r / 16) * kTileLanes, 16, tile[0], 16);
      for (int k = 0; k < 16; ++k) {
        float* const sum = p.gradient + (row + r + k) * z.width + d;
        Avx512::store(sum, Avx512::load(sum) + Avx512::load(tile[k]));
      }
    }
  }
}

}  // namespace
#endif
