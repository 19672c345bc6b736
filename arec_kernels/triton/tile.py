"""What every kernel does with a tile of the similarity matrix: compute, leave pairs out, round.

All kernels compute a tile the same way, rows (I, D) times columns (J, D) transposed, with the same
shapes and the same order of summation. Forward and backward therefore see the same bits and decide
`s_ij > k_i` alike, and s_ij == s_ji: each product of a pair commutes, and pairs are summed over D
in one order wherever in a tile they stand.
"""

import triton
import triton.language as tl

from arec_kernels.triton import config

INTERPRETED = tl.constexpr(config.INTERPRETED)
LOG2_E = tl.constexpr(1.4426950408889634)
INFINITY = tl.constexpr(float("inf"))
# In place of the similarity of a pair that is left out. Not -inf, which times zero is NaN.
LEFT_OUT = tl.constexpr(-1e30)
LOWEST = tl.constexpr(-1e29)  # of thresholds


@triton.jit
def block_of_program(
    local_block,  # the first one with local rows of the first view
    local_end,  # behind the last one
    skipped,  # blocks from there to the first one of the second view
    LOCAL: tl.constexpr,
):
    """Which block of rows this program owns: all have one, or those of local rows only."""
    block = tl.program_id(0)
    if LOCAL:
        block += local_block
        block += tl.where(block < local_end, 0, skipped)
    return block


@triton.jit
def load_block(
    unit_ptr,  # (N_PADDED, WIDTH), normalised rows, contiguous
    first_row,
    first_column,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """(ROWS, COLUMNS) of the normalised rows. They are padded with zeros, so nothing is masked."""
    base = unit_ptr + tl.cast(first_row, tl.int64) * WIDTH + first_column
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    return tl.load(base + rows[:, None] * WIDTH + columns[None, :])


@triton.jit
def similarity_tile(
    unit_ptr,  # (N_PADDED, WIDTH)
    row_block,  # (ROWS, WIDTH) where WIDTH == BLOCK_K: held for the whole loop over columns
    first_row,
    first_column,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Similarities (ROWS, COLUMNS) in fp32, and the last (COLUMNS, BLOCK_K) block of columns."""
    s = tl.zeros((ROWS, COLUMNS), tl.float32)
    if WIDTH == BLOCK_K:
        column_block = load_block(unit_ptr, first_column, 0, WIDTH, COLUMNS, BLOCK_K)
        s = add_similarities(s, row_block, column_block, PRECISION)
    else:
        column_block = tl.zeros((COLUMNS, BLOCK_K), row_block.dtype)
        for k in range(0, WIDTH, BLOCK_K):
            row_chunk = load_block(unit_ptr, first_row, k, WIDTH, ROWS, BLOCK_K)
            column_block = load_block(unit_ptr, first_column, k, WIDTH, COLUMNS, BLOCK_K)
            s = add_similarities(s, row_chunk, column_block, PRECISION)
    return s, column_block


@triton.jit
def add_similarities(
    s,  # (ROWS, COLUMNS) fp32
    row_chunk,  # (ROWS, BLOCK_K)
    column_block,  # (COLUMNS, BLOCK_K)
    PRECISION: tl.constexpr,
):
    """`s` plus the products of rows and columns."""
    if INTERPRETED:
        # `tl.dot` would be a BLAS call, which sums in an order that depends on a pair's place.
        products = row_chunk.to(tl.float32)[:, :, None] * tl.trans(column_block)[None, :, :]
        s += tl.sum(products, 1)
    else:
        s = tl.dot(row_chunk, tl.trans(column_block), s, input_precision=PRECISION)
    return s


@triton.jit
def load_groups(groups_ptr, rows, n, NONE: tl.constexpr):
    """Groups (rows,) with NONE for every negative one; NONE differs between rows and columns."""
    groups = tl.load(groups_ptr + rows, mask=rows < n, other=-1)
    return tl.where(groups < 0, NONE, groups)


@triton.jit
def candidates_only(
    s,  # (ROWS, COLUMNS)
    row_groups,  # (ROWS,) from load_groups with NONE = -1, read only where GROUPED
    first_row,
    first_column,
    groups_ptr,  # (N,) int64
    n,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUPED: tl.constexpr,
):
    """`s` with LEFT_OUT where column j is not a candidate of row i, or either lies past the last row.

    It is above no threshold and has exponential 0: everything downstream follows from it. Only
    tiles on the diagonal, on the partners' diagonals or at the end pay for the comparison.
    """
    half = n // 2
    from_diagonal = tl.abs(first_column - first_row)
    from_partners = tl.abs(from_diagonal - half)
    near = tl.minimum(from_diagonal, from_partners) < max(ROWS, COLUMNS)
    at_end = (first_column + COLUMNS > n) | (first_row + ROWS > n)
    columns = first_column + tl.arange(0, COLUMNS)
    if near | at_end:
        rows = first_row + tl.arange(0, ROWS)
        partners = tl.where(rows < half, rows + half, rows - half)
        left_out = (columns[None, :] == rows[:, None]) | (columns[None, :] == partners[:, None])
        left_out |= (columns >= n)[None, :] | (rows >= n)[:, None]
        s = tl.where(left_out, LEFT_OUT, s)
    if GROUPED:
        column_groups = load_groups(groups_ptr, columns, n, -2)
        s = tl.where(row_groups[:, None] == column_groups[None, :], LEFT_OUT, s)
    return s


@triton.jit
def candidate_tile(
    unit_ptr,  # (N_PADDED, WIDTH)
    row_block,  # as in `similarity_tile`
    row_groups,  # as in `candidates_only`
    first_row,
    first_column,
    groups_ptr,
    n,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUPED: tl.constexpr,
):
    """`similarity_tile` of the candidates only."""
    s, column_block = similarity_tile(
        unit_ptr, row_block, first_row, first_column, WIDTH, BLOCK_K, ROWS, COLUMNS, PRECISION
    )
    s = candidates_only(
        s, row_groups, first_row, first_column, groups_ptr, n, ROWS, COLUMNS, GROUPED
    )
    return s, column_block


@triton.jit
def at_least_lowest(
    threshold,
):
    """The threshold, or for -infinity one that LEFT_OUT is still below."""
    return tl.where(threshold < LOWEST, LOWEST, threshold)


@triton.jit
def partial_sums(
    x,  # (ROWS, COLUMNS)
    PARTS: tl.constexpr,
):
    """(ROWS, PARTS): sums over every PARTS-th column."""
    return tl.sum(tl.reshape(x, (x.shape[0], x.shape[1] // PARTS, PARTS)), 1)


@triton.jit
def kahan_add(
    total,
    lost,  # what the roundings so far have added too much
    term,
):
    """`total` + `term`, and what is lost then: as exact as one rounding, however many terms there are."""
    term -= lost
    added = total + term
    return added, (added - total) - term


@triton.jit
def count_bins(
    s,  # (ROWS, COLUMNS)
    first_bin,
    bins,
    BLOCK_BINS: tl.constexpr,
):
    """Counts (BLOCK_BINS,) of the similarities in bins first_bin, first_bin + 1, …"""
    # (s + 1) * (bins / 2) has the one rounding of (s + 1) / 2 * bins.
    position = tl.floor((s + 1.0) * (bins * 0.5))
    position = tl.minimum(tl.maximum(position, 0.0), bins - 1.0).to(tl.int32) - first_bin
    inside = (position >= 0) & (position < BLOCK_BINS) & (s > LEFT_OUT)
    position = tl.where(inside, position, 0)
    return tl.histogram(tl.ravel(position), BLOCK_BINS, mask=tl.ravel(inside))


@triton.jit
def is_nan(x):
    return (x.to(tl.int32, bitcast=True) & 0x7FFFFFFF) > 0x7F800000


@triton.jit
def round_mantissa(x, DROPPED_BITS: tl.constexpr):
    """fp32 `x` to the nearest value with DROPPED_BITS fewer mantissa bits, ties to even.

    16 leaves bfloat16 and 13 TF32. The casts that follow are then exact: tensor cores cut TF32
    operands off, and the interpreter cuts bfloat16 off.
    """
    if DROPPED_BITS == 0:
        rounded = x
    else:
        bits = x.to(tl.int32, bitcast=True)
        odd = (bits >> DROPPED_BITS) & 1
        bits += odd + ((1 << (DROPPED_BITS - 1)) - 1)
        bits = (bits >> DROPPED_BITS) << DROPPED_BITS
        # The carry would turn the NaN of all ones, the one hardware makes, into zero.
        rounded = tl.where(is_nan(x), x, bits.to(tl.float32, bitcast=True))
    return rounded


@triton.jit
def nearest_tf32(x):
    """fp32 `x` to the nearest TF32 value in a few float operations, for the entries of every tile.

    Dekker's splitting: the sum of x and 2^13 x has no room for the last 13 bits of x. NaN stays;
    beyond 2^114 it becomes NaN, which no gradient comes near. The sum may be one multiply-add, and
    nothing after it is: a product x * 8193 would be fused with both differences, and round nothing.
    """
    high = x * 8192.0 + x
    return high - (high - x)


@triton.jit
def reorder_products(
    entry,  # (ROWS, COLUMNS)
    block,  # (COLUMNS, WIDTH)
):
    """Both with the columns j that they are summed over in the order 0 2 4 6 1 3 5 7 of every eight.

    Of a TF32 product's result a thread holds two neighbours, and as operand it has to bring two that
    are four apart: in this order they are the same ones, and no thread asks another.
    """
    pairs = tl.reshape(entry, (entry.shape[0], entry.shape[1] // 8, 4, 2))
    entry = tl.reshape(tl.permute(pairs, (0, 1, 3, 2)), entry.shape)
    pairs = tl.reshape(block, (block.shape[0] // 8, 4, 2, block.shape[1]))
    block = tl.reshape(tl.permute(pairs, (0, 2, 1, 3)), block.shape)
    return entry, block
