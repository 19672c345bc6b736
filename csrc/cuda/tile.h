// How a block goes through a band of the similarity matrix: its rows with all columns, tile by tile.
#pragma once
#include "kernels.h"
#include "product.h"

namespace arec::cuda {

constexpr int kLeastShared = 99 << 10;  // bytes a block may have on the card that has least

// Width of unit rows whose tiles fit into shared memory whole; 0: any width, in chunks of kChunk.
constexpr int kAnyWidth = 0;
constexpr int kChunk = 128;

// Shapes of the kernels for numbers F in unit rows of a width.
template <class F, int width>
struct Shape {
  // Narrow gradients leave registers for two fragments of rows a warp, which share the columns they read.
  static constexpr int kBlocks = sizeof(typename F::Unit) == 2 && width == 64 ? 2 : 1;
  static constexpr int kRows = kWarps * kBlocks * kFragment;
  static constexpr int kColumns = F::kColumns;
  static constexpr int kFragments = kColumns / kEight;
  static constexpr int kDepth = width == kAnyWidth ? kChunk : width;  // in shared memory at a time
  static constexpr int kStride = kDepth + F::kPad;
  static constexpr int kGradient = kDepth < kChunk ? kDepth : kChunk;  // columns of gradient a block
  // The next tile is copied while one is computed, where there is room for both.
  static constexpr int kStages = width == kAnyWidth || width == 256 ? 1 : 2;
  static constexpr int kRowBytes = kRows * kStride * sizeof(typename F::Unit);
  static constexpr int kColumnBytes = kColumns * kStride * sizeof(typename F::Unit);
  static constexpr int kStageBytes = kColumnBytes + kOfColumn * kColumns * sizeof(float);
  static constexpr int kBytes = kRowBytes + kStages * kStageBytes;
  static_assert(kMostRows % kRows == 0 && kMostRows % kColumns == 0);
  static_assert(kBytes + kSharedBins * sizeof(int) <= kLeastShared);
};

// Numbers [first, first + kDepth) of `count` unit rows into shared memory, by all threads.
template <class F, class S, int count>
__device__ __forceinline__ void copy_rows(const Rows& rows, int first_row, int first, void* to) {
  using Unit = typename F::Unit;
  constexpr int kNumbers = 16 / sizeof(Unit), kPieces = S::kDepth / kNumbers, kStep = kThreads / kPieces;
  static_assert(kThreads % kPieces == 0 && count % kStep == 0);
  const int row = threadIdx.x / kPieces, number = threadIdx.x % kPieces * kNumbers;
  const Unit* const from = static_cast<const Unit*>(rows.unit) + int64_t(first_row + row) * rows.width + first + number;
#pragma unroll
  for (int r = 0; r < count; r += kStep)
    copy_async(static_cast<Unit*>(to) + (row + r) * S::kStride + number, from + int64_t(r) * rows.width);
}

// The rows and columns of a thread's numbers: s[block][c][e] is in row row_of<S>(block, e / 2).
template <class S>
__device__ __forceinline__ int row_of(int block, int half) {
  return blockIdx.x * S::kRows + (warp() * S::kBlocks + block) * kFragment + quad() + half * 8;
}
// visit(block, half) once for each of the rows.
template <class S, class Visit>
__device__ __forceinline__ void for_each_row(Visit visit) {
#pragma unroll
  for (int block = 0; block < S::kBlocks; ++block)
#pragma unroll
    for (int half = 0; half < 2; ++half) visit(block, half);
}

// A tile of the similarity matrix in a thread's eyes.
template <class F, class S>
struct Tile {
  int first_row, first_column;  // the block's first row
  const typename F::Unit* columns;  // in shared memory: (kColumns, kStride), numbers of the block's gradient
  const float* coefficients;        // in shared memory: (kOfColumn, kColumns), where asked for

  __device__ __forceinline__ int column(int c, int e) const {
    return first_column + c * kEight + pair() + e % 2;
  }
};

// The similarity of a pair that is left out: above no threshold that is at least kLowest, and its exponential
// is 0. Finite, so that it can be multiplied by a zero.
constexpr float kLeftOut = -1e30f;
constexpr float kLowest = -1e29f;  // for -infinity
__device__ __forceinline__ float at_least_lowest(float threshold) {
  return threshold < kLowest ? kLowest : threshold;  // NaN, which nothing is above, stays
}

// kLeftOut where column j is no candidate of row i, or either lies past the last row. Only tiles on the
// diagonal, on the partners' diagonals and at the end compare rows.
template <class F, class S>
__device__ __forceinline__ void leave_out(const Rows& rows, const Tile<F, S>& tile, bool grouped,
                                          float (&s)[S::kBlocks][S::kFragments][4]) {
  const auto crosses = [&](int offset) {
    const int ahead = tile.first_row - tile.first_column + offset;
    return ahead < S::kColumns && ahead > -S::kRows;
  };
  const bool at_end = tile.first_row + S::kRows > rows.n || tile.first_column + S::kColumns > rows.n;
  if (!at_end && !crosses(0) && !crosses(rows.partner) && !crosses(-rows.partner) && !grouped) return;
#pragma unroll
  for (int block = 0; block < S::kBlocks; ++block)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int i = row_of<S>(block, e / 2), partner = rows.partner_of(i);
      const int64_t group = grouped && i < rows.n ? rows.groups[i] : -1;
#pragma unroll
      for (int c = 0; c < S::kFragments; ++c) {
        const int j = tile.column(c, e);
        bool out = j == i || j == partner || j >= rows.n || i >= rows.n;
        if (group >= 0 && !out) out = rows.groups[j] == group;
        if (out) s[block][c][e] = kLeftOut;
      }
    }
}

// visit(s, tile) for the block's rows and each tile of the columns of split blockIdx.z. s holds a thread's
// similarities, kLeftOut for pairs that are left out. `coefficients`, or null: what of columns to copy to shared
// memory beside them. The gradient's numbers begin at first_number.
template <class F, int width, bool grouped, class Visit>
__device__ __forceinline__ void for_each_tile(const Rows& rows, const float* coefficients, int first_number,
                                              Visit visit) {
  using S = Shape<F, width>;
  using Unit = typename F::Unit;
  char* const memory = shared_memory();
  Unit* const row_tile = reinterpret_cast<Unit*>(memory);
  const auto stage = [&](int tile) { return memory + S::kRowBytes + tile % S::kStages * S::kStageBytes; };
  const int tiles = rows.padded_n / S::kColumns;
  const int begin = int(int64_t(tiles) * blockIdx.z / rows.splits);
  const int end = int(int64_t(tiles) * (blockIdx.z + 1) / rows.splits);
  const int first_row = blockIdx.x * S::kRows;
  const int own_rows = warp() * S::kBlocks * kFragment * S::kStride;

  const auto copy_columns = [&](int tile, int first) {
    copy_rows<F, S, S::kColumns>(rows, tile * S::kColumns, first, stage(tile));
  };
  const auto copy_coefficients = [&](int tile) {
    constexpr int kPieces = S::kColumns / 4;
    if (coefficients == nullptr) return;
    for (int piece = threadIdx.x; piece < kOfColumn * kPieces; piece += kThreads) {
      const int which = piece / kPieces, column = piece % kPieces * 4;
      copy_async(stage(tile) + S::kColumnBytes + (which * S::kColumns + column) * sizeof(float),
                 coefficients + int64_t(which) * rows.padded_n + tile * S::kColumns + column);
    }
  };
  const auto copy_tile = [&](int tile) {
    copy_columns(tile, 0);
    copy_coefficients(tile);
  };

  if constexpr (width != kAnyWidth) {
    copy_rows<F, S, S::kRows>(rows, first_row, 0, row_tile);
    if (S::kStages == 2 && begin < end) copy_tile(begin);
    commit_copies();
  }
  for (int at = begin; at < end; ++at) {
    typename F::Sums sums[S::kBlocks][S::kFragments] = {};
    const Unit* const columns = reinterpret_cast<const Unit*>(stage(at));
    const auto add_to = [&](typename F::Sums (&sums)[S::kBlocks][S::kFragments]) {
#pragma unroll 4
      for (int k = 0; k < S::kDepth; k += F::kDepth)
        F::template add_similarities<S::kBlocks>(sums, row_tile + own_rows + k, columns + k, S::kStride);
    };
    if constexpr (width != kAnyWidth) {
      constexpr int kAhead = S::kStages - 1;
      if (at + kAhead < end) copy_tile(at + kAhead);
      commit_copies();
      wait_for_copies<kAhead>();
      __syncthreads();
      add_to(sums);
    } else {
      const auto arrive = [&] {
        commit_copies();
        wait_for_copies<0>();
        __syncthreads();
      };
      copy_coefficients(at);
      for (int first = 0; first < rows.width; first += kChunk) {
        copy_rows<F, S, S::kRows>(rows, first_row, first, row_tile);
        copy_columns(at, first);
        arrive();
        typename F::Sums chunk[S::kBlocks][S::kFragments] = {};
        add_to(chunk);
#pragma unroll
        for (int block = 0; block < S::kBlocks; ++block)
#pragma unroll
          for (int c = 0; c < S::kFragments; ++c) sums[block][c] += chunk[block][c];
        __syncthreads();
      }
      if (coefficients != nullptr) {
        copy_columns(at, first_number);
        arrive();
      }
    }
    float s[S::kBlocks][S::kFragments][4];
#pragma unroll
    for (int block = 0; block < S::kBlocks; ++block)
#pragma unroll
      for (int c = 0; c < S::kFragments; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[block][c][e] = sums[block][c][e];
    const Tile<F, S> tile{first_row, at * S::kColumns, columns + (width == kAnyWidth ? 0 : first_number),
                          reinterpret_cast<const float*>(stage(at) + S::kColumnBytes)};
    leave_out<F, S>(rows, tile, grouped && rows.groups != nullptr, s);
    visit(s, tile);
    __syncthreads();  // before another tile takes this one's place
  }
}

// Over the four lanes that share a row.
template <class T, class Combine>
__device__ __forceinline__ T over_row(T x, Combine combine) {
  x = combine(x, __shfl_xor_sync(0xffffffff, x, 1));
  return combine(x, __shfl_xor_sync(0xffffffff, x, 2));
}
template <class T>
__device__ __forceinline__ T sum_over_row(T x) {
  return over_row(x, [](T a, T b) { return a + b; });
}

}  // namespace arec::cuda
