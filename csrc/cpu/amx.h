// Products on AMX tiles (Intel, from Sapphire Rapids on): 16 x 16 float sums of pairs of bfloat16, at
// many times the rate of float multiply-adds.
//
// A float is the sum of three bfloat16 parts, x = x0 + x1 + x2 with |x1| <= 2^-7 |x0| and
// |x2| <= 2^-16 |x0|, so up to terms below its last bit
//   x y = x0 y0 + x1 y1 + (x0 y1 + x0 y2) + (x1 y0 + x2 y0).
// Float operands hold their parts one after the other, and six products make one; bfloat16 operands are
// one part. In a similarity the two brackets are summed apart: exchanging the rows exchanges the sums,
// so s_ij == s_ji to the bit.
#pragma once
#include "kernels.h"
#include "simd.h"

#if defined(__AMX_BF16__)
namespace {

using namespace arec::cpu;

struct Amx : Avx512Bf16 {
  static constexpr int kRows = 32, kPanelVectors = 4;
  static constexpr bool kTiles = true;
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

  static Layout layout(Element element) {
    return {2, 16, element == Element::kBFloat16 ? 1 : 3, true, true};
  }
};

// Which part of the left operand meets which of the right one, in an order that reloads few tiles.
struct OnePart {
  static constexpr int count = 1, left[] = {0}, right[] = {0};
};
struct AllParts {
  static constexpr int count = 6, left[] = {0, 0, 0, 1, 1, 2}, right[] = {0, 2, 1, 1, 0, 0};
};
struct EqualParts {
  static constexpr int count = 2, left[] = {0, 1}, right[] = {0, 1};
};
struct FirstByLater {
  static constexpr int count = 2, left[] = {0, 0}, right[] = {1, 2};
};
struct LaterByFirst {
  static constexpr int count = 2, left[] = {1, 2}, right[] = {0, 0};
};

// Strides in lanes: from part to part, from row to row, from a tile to the next one along the depth of
// the product and across it.
struct Operand {
  const float* at;
  int64_t part, row, deeper, across;
};

// C (16 m, 16 n) = or += A B over `steps` tiles of depth; beside() once a step.
template <class Parts, int m, int n, bool accumulate, class Beside>
inline void tile_product(const Operand& a, const Operand& b, int64_t steps, float* c, int64_t c_row,
                         Beside beside) {
  const int64_t a_bytes = a.row * 4, b_bytes = b.row * 4, c_bytes = c_row * 4;
  float* const below = c + 16 * c_row;
  asm volatile("" ::: "memory");  // gcc does not know that tile loads read memory
  if constexpr (accumulate) {
    _tile_loadd(0, c, c_bytes);
    if constexpr (n == 2) _tile_loadd(1, c + 16, c_bytes);
    if constexpr (m == 2) _tile_loadd(2, below, c_bytes);
    if constexpr (m == 2 && n == 2) _tile_loadd(3, below + 16, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 6
    for (int k = 0; k < Parts::count; ++k) {
      if (k == 0 || Parts::left[k] != Parts::left[k - 1]) {
        const float* const left = a.at + Parts::left[k] * a.part + step * a.deeper;
        _tile_loadd(4, left, a_bytes);
        if constexpr (m == 2) _tile_loadd(5, left + a.across, a_bytes);
      }
      if (k == 0 || Parts::right[k] != Parts::right[k - 1]) {
        const float* const right = b.at + Parts::right[k] * b.part + step * b.deeper;
        _tile_loadd(6, right, b_bytes);
        if constexpr (n == 2) _tile_loadd(7, right + b.across, b_bytes);
      }
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (n == 2) _tile_dpbf16ps(1, 4, 7);
      if constexpr (m == 2) _tile_dpbf16ps(2, 5, 6);
      if constexpr (m == 2 && n == 2) _tile_dpbf16ps(3, 5, 7);
    }
    beside(step);
  }
  _tile_stored(0, c, c_bytes);
  if constexpr (n == 2) _tile_stored(1, c + 16, c_bytes);
  if constexpr (m == 2) _tile_stored(2, below, c_bytes);
  if constexpr (m == 2 && n == 2) _tile_stored(3, below + 16, c_bytes);
}

// S (32, kTile): rows [row, row + 32) of z times the columns of a panel.
template <class Beside>
inline void similarities(Amx, const Embeddings<float>& z, int64_t row, int64_t column, float* s,
                         int64_t s_row, Beside beside) {
  const int64_t stride = z.width / 2, steps = z.depth / 16;
  const Operand left = {z.rows + row * stride, z.padded_n * stride, stride, 16, 16 * stride};
  Operand right = {z.panels + column * z.depth, z.padded_n * z.depth, kTile, 16 * kTile, 16};
  const auto nothing = [](int64_t) {};
  int64_t done = 0;  // of the z.depth portions of the work beside
  const auto portion = [&](int64_t) {
    for (int k = 0; k < 8; ++k) beside(done++);
  };
  for (int64_t half = 0; half < kTile; half += 32, right.at += 32, s += 32) {
    if (z.element == Element::kBFloat16) {
      tile_product<OnePart, 2, 2, false>(left, right, steps, s, s_row, portion);
      continue;
    }
    alignas(64) float first[32 * 32], later[32 * 32];
    tile_product<FirstByLater, 2, 2, false>(left, right, steps, first, 32, portion);
    tile_product<LaterByFirst, 2, 2, false>(left, right, steps, later, 32, nothing);
    tile_product<EqualParts, 2, 2, false>(left, right, steps, s, s_row, nothing);
    for (int r = 0; r < 32; ++r)
      for (int c = 0; c < 32; c += 16)
        Amx::store(s + r * s_row + c, Amx::load(s + r * s_row + c) + (Amx::load(first + r * 32 + c) +
                                                                      Amx::load(later + r * 32 + c)));
  }
}

// C (rows, columns) += A B, in blocks of up to two by two tiles; both are multiples of 16.
template <class Parts>
inline void add_tile_product(const Operand& a, const Operand& b, int64_t steps, int64_t rows,
                             int64_t columns, float* c, int64_t c_row) {
  const auto nothing = [](int64_t) {};
  Operand left = a;
  for (int64_t i = 0; i < rows; i += 32, left.at += 2 * a.across) {
    Operand right = b;
    for (int64_t j = 0; j < columns; j += 32, right.at += 2 * b.across) {
      const bool tall = rows - i >= 32, wide = columns - j >= 32;
      float* const to = c + i * c_row + j;
      if (tall && wide) tile_product<Parts, 2, 2, true>(left, right, steps, to, c_row, nothing);
      else if (tall) tile_product<Parts, 2, 1, true>(left, right, steps, to, c_row, nothing);
      else if (wide) tile_product<Parts, 1, 2, true>(left, right, steps, to, c_row, nothing);
      else tile_product<Parts, 1, 1, true>(left, right, steps, to, c_row, nothing);
    }
  }
}

// The parts of 16 floats, each in the upper half of its lane; the lower halves are of no meaning. The
// first one is cut off, not rounded, so that NaN stays NaN.
struct Split {
  __m512i parts[3];
  explicit Split(const float* p) {
    const __m512i upper = _mm512_set1_epi32(int(0xffff0000)), half = _mm512_set1_epi32(0x8000);
    const __m512i x = _mm512_loadu_si512(p);
    const auto without = [&](__m512i y, __m512i part) {
      return _mm512_castps_si512(_mm512_castsi512_ps(y) -
                                 _mm512_castsi512_ps(_mm512_and_si512(part, upper)));
    };
    const __m512i rest = without(x, x);
    parts[0] = x;
    parts[1] = _mm512_add_epi32(rest, half);
    parts[2] = without(rest, parts[1]);
  }
};

// 32 neighbours, the upper halves of two vectors, as pairs.
inline __m512i pairs_along(__m512i x, __m512i y) {
  alignas(64) static constexpr uint16_t odd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                   23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                   45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16(x, _mm512_load_si512(odd), y);
}

// Pairs of one row and the next.
inline __m512i pairs_across(__m512i x, __m512i y) {
  return _mm512_or_si512(_mm512_srli_epi32(x, 16),
                         _mm512_and_si512(y, _mm512_set1_epi32(int(0xffff0000))));
}

// Two rows of 32 floats, in `parts` parts, as pairs along the rows and as pairs of the rows.
inline void split_rows(const float* x, const float* y, int parts, float* along_x, float* along_y,
                       int64_t along_part, float* across, int64_t across_part) {
  const Split x0(x), x1(x + 16), y0(y), y1(y + 16);
  for (int part = 0; part < parts; ++part) {
    _mm512_storeu_si512(along_x + part * along_part, pairs_along(x0.parts[part], x1.parts[part]));
    _mm512_storeu_si512(along_y + part * along_part, pairs_along(y0.parts[part], y1.parts[part]));
    float* const to = across + part * across_part;
    _mm512_storeu_si512(to, pairs_across(x0.parts[part], y0.parts[part]));
    _mm512_storeu_si512(to + 16, pairs_across(x1.parts[part], y1.parts[part]));
  }
}

// The gradients of a tile's rows and, transposed, of its columns, from its G.
inline void add_gradients(Amx, const Backward<float>& p, int64_t row, int64_t column, float* g) {
  constexpr int64_t part = kTile * kTile / 2, steps = kTile / 32;
  const auto& z = p.pairs.z;
  const int64_t z_part = z.padded_n * z.width / 2, dim = (z.dim + 15) / 16 * 16;
  alignas(64) float along[3 * part], across[3 * part];
  const Operand g_rows = {along, part, kTile / 2, 16, 8 * kTile},
                g_columns = {across, part, kTile, 16 * kTile, 16},
                z_columns = {z.row_pairs + column / 2 * z.width, z_part, z.width, 16 * z.width, 16},
                z_rows = {z.transposed + row * z.width / 2, z_part, kTile / 2, 16, 8 * kTile};
  float* const to_rows = p.gradient + row * z.width;
  float* const to_columns = p.column_gradient + column * z.width;
  if (z.element == Element::kBFloat16) {
    Amx::pack_pairs(g, along, across);
    add_tile_product<OnePart>(g_rows, z_columns, steps, kTile, dim, to_rows, z.width);
    add_tile_product<OnePart>(z_rows, g_columns, steps, dim, kTile, to_columns, kTile);
  } else {
    for (int64_t r = 0; r < kTile; r += 2)
      for (int64_t c = 0; c < kTile; c += 32) {
        const float* const x = g + r * kTile + c;
        float* const left = along + (r * kTile + c) / 2;
        split_rows(x, x + kTile, 3, left, left + kTile / 2, part, across + r / 2 * kTile + c, part);
      }
    add_tile_product<AllParts>(g_rows, z_columns, steps, kTile, dim, to_rows, z.width);
    add_tile_product<AllParts>(z_rows, g_columns, steps, dim, kTile, to_columns, kTile);
  }
}

// Dimensions [d, d + 32) of a tile of unit rows, (kTile, 32), into all operands.
inline void pack(Amx, const Embeddings<float>& z, int64_t row, int64_t d, const float* unit) {
  const int parts = z.element == Element::kBFloat16 ? 1 : 3;
  const int64_t stride = z.width / 2, part = z.padded_n * stride;
  float* const rows = z.rows + row * stride + d / 2;
  alignas(64) float unused[3 * 32];
  for (int64_t r = 0; r < kTile; r += 2) {
    float* const along = rows + r * stride;
    float* const across = z.row_pairs ? z.row_pairs + (row + r) / 2 * z.width + d : unused;
    split_rows(unit + r * 32, unit + r * 32 + 32, parts, along, along + stride, part, across,
               z.row_pairs ? part : 32);
  }
  for (int k = 0; k < parts; ++k) {
    float* const panel = z.panels + k * z.padded_n * z.depth + row * z.depth + d / 2 * kTile;
    for (int64_t r = 0; r < kTile; r += 16)
      Amx::transpose(rows + k * part + r * stride, stride, panel + r, kTile);
    if (!z.transposed) continue;
    float* const transposed = z.transposed + k * part + row * stride + d * kTile / 2;
    for (int64_t c = 0; c < 32; c += 16)
      for (int64_t r = 0; r < kTile / 2; r += 16)
        Amx::transpose(z.row_pairs + k * part + (row / 2 + r) * z.width + d + c, z.width,
                       transposed + c * kTile / 2 + r, kTile / 2);
  }
}

// Adds the columns' gradients to those of the rows.
inline void gather_gradients(Amx, const Backward<float>& p, Rows rows) {
  const auto& z = p.pairs.z;
  alignas(64) float block[16 * 16];
  for (int64_t i = rows.begin; i < rows.end; i += 16)
    for (int64_t d = 0; d < z.dim; d += 16) {
      Amx::transpose(p.column_gradient + i / kTile * kTile * z.width + d * kTile + i % kTile, kTile,
                     block, 16);
      for (int r = 0; r < 16; ++r) {
        float* const to = p.gradient + (i + r) * z.width + d;
        Amx::store(to, Amx::load(to) + Amx::load(block + 16 * r));
      }
    }
}

}  // namespace
#endif
