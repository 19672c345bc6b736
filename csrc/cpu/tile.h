// Which pairs of a tile count, for every kernel.
#pragma once
#include "product.h"

namespace {

// A square tile of similarities: rows [row, row + kSide), columns likewise, row <= column.
struct Tile {
  int64_t row, column;
  int64_t next;  // the next tile's column; -1: this is the last one of its pair of blocks
  bool partners;  // some partners meet in it
  bool masked;    // not every pair of it is a pair of candidates
  // Where the candidates of rows from `i` on begin, in whole steps of columns: on the diagonal what is
  // left of it is not computed.
  int64_t first_column(int64_t i, int64_t step) const {
    return row == column ? (i - row) / step * step : 0;
  }
};

template <class T>
inline Tile make_tile(const Embeddings<T>& z, const T* group, int64_t row, int64_t column,
                      int64_t next) {
  const int64_t diagonal = column - row - z.partner;
  const bool partners = z.partner > 0 && -kSide < diagonal && diagonal < kSide;
  return {row, column, next, partners,
          partners || group || row == column || column + kSide > z.n};
}

// f(tile) for every tile of the two ranges, above and on the diagonal, where each pair of rows is met
// once; rows first.
template <class V, class T, class F>
inline void for_each_tile(const Embeddings<T>& z, const T* group, Rows rows, Rows columns, F f) {
  const typename V::Session session;
  const auto begin = [&](int64_t row) {
    return row == rows.end ? -1 : rows.begin == columns.begin ? row : columns.begin;
  };
  for (int64_t row = rows.begin; row < rows.end; row += kSide)
    for (int64_t column = begin(row); column < columns.end; column += kSide)
      f(make_tile(z, group, row, column,
                  column + kSide < columns.end ? column + kSide : begin(row + kSide)));
}

template <bool b>
struct Constant {
  static constexpr bool value = b;
};

// f(Constant<true> or Constant<false>): `masked` as a compile-time constant.
template <class F>
inline void with_mask(bool masked, F f) {
  if (masked) f(Constant<true>{});
  else f(Constant<false>{});
}

// The candidates j of one row i among the columns of a tile, each unordered pair once.
template <class V>
struct CandidateRow {
  using T = typename V::Scalar;
  T first, end, partner, group;  // columns count from the tile's first
  const T* groups;               // of the columns; null where there are none

  CandidateRow(const Embeddings<T>& z, const T* group_of_row, const Tile& tile, int64_t i)
      : first(T(i >= z.n ? kSide : tile.row == tile.column ? i - tile.row : -1)),
        end(T(z.n - tile.column < kSide ? z.n - tile.column : kSide)),
        partner(T(kSide)),
        group(group_of_row ? group_of_row[i] : 0),
        groups(group_of_row ? group_of_row + tile.column : nullptr) {
    const int64_t p = (i < z.partner ? i + z.partner : i - z.partner) - tile.column;
    if (z.partner > 0 && p >= 0 && p < kSide) partner = T(p);
  }

  typename V::Mask operator()(int column) const {
    const auto j = V::iota(T(column));
    auto mask = V::greater(j, V::broadcast(first)) & V::greater(V::broadcast(end), j) &
                ~V::equal(j, V::broadcast(partner));
    if (groups) mask = mask & ~V::equal(V::load(groups + column), V::broadcast(group));
    return mask;
  }
};

// f(i, p(i), where their similarity is in `rows` rows of a tile) for the partners i < p(i) that meet
// there, in rows [row, row + rows).
template <class T, class F>
inline void for_each_partner(const Embeddings<T>& z, const Tile& tile, int64_t row, int64_t rows, F f) {
  if (!tile.partners) return;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t i = row + r, c = i + z.partner - tile.column;
    if (i < z.partner && c >= 0 && c < kSide) f(i, i + z.partner, r * kSide + c);
  }
}

// Brings `size` numbers on the way from the far caches, while there is something else to compute.
template <class T>
inline void prefetch(const T* p, int64_t size) {
  for (const char *line = (const char*)p, *end = (const char*)(p + size); line < end; line += 64)
    __builtin_prefetch(line);
}

// Similarities of the tile's rows [row, row + V::kRows) into s (V::kRows, kSide), with work.next(steps)
// beside each product; a share of the panels beyond the tile, which are mostly next, is fetched.
template <class V, class Work>
inline void similarity_band(const Embeddings<typename V::Scalar>& z, const Tile& tile, int64_t row,
                            typename V::Scalar* s, Work& work) {
  if (!V::kTiles && tile.next >= 0)
    prefetch(z.panels + (tile.next + row - tile.row) * z.panel_lanes, V::kRows * z.panel_lanes);
  for (int64_t c = tile.first_column(row, kPanel<V>); c < kSide; c += kPanel<V>)
    similarities(V{}, z, row, tile.column + c, s + c, kSide, work.next(z.depth));
}

// The tile's similarities into s (kSide, kSide).
template <class V>
inline void similarity_tile(const Embeddings<typename V::Scalar>& z, const Tile& tile,
                            typename V::Scalar* s) {
  Nothing work;
  for (int64_t r = 0; r < kSide; r += V::kRows)
    similarity_band<V>(z, tile, tile.row + r, s + r * kSide, work);
}

// exp(s / tau) in the scale of row i and of the columns from j on; one exponential where they share it.
template <class V, bool own_shift>
struct Exponentials {
  using T = typename V::Scalar;
  typename V::Reg row, column;
  Exponentials(typename V::Reg s, const Pairs<T>& pairs, int64_t i, int64_t j) {
    if constexpr (own_shift) {
      const auto x = s * V::broadcast(pairs.scale);
      row = exp2_any<V>(x - V::broadcast(pairs.shift[i]));
      column = exp2_any<V>(x - V::load(pairs.shift + j));
    } else {
      row = column = exp2<V>(s, pairs.scale, pairs.shared_shift);
    }
  }
};

}  // namespace
