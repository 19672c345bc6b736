"""Exact quantile of each row's similarities without storing or sorting them.

Each program finds the r-th smallest similarity of its rows by bisection on the bits of a float,
which ordered as integers are in the order of the numbers: 32 passes over the columns pin down all
of them. One pass more finds its successor.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from arec_kernels.triton.config import device_of, plan
from arec_kernels.triton.launch import launch
from arec_kernels.triton.normalize import normalize
from arec_kernels.triton.tile import (
    INFINITY,
    candidate_tile,
    candidates_only,
    is_nan,
    load_block,
    load_groups,
)


@triton.jit
def quantile_kernel(
    unit_ptr,  # (N_PADDED, WIDTH)
    groups_ptr,  # (N,) int64, None without groups
    q_ptr,  # () float64: an argument would arrive as fp32
    quantile_ptr,  # (N,) out
    n,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUPED: tl.constexpr,
):
    first_row = tl.program_id(0) * ROWS
    rows = first_row + tl.arange(0, ROWS)
    row_groups = load_groups(groups_ptr, rows, n, -1) if GROUPED else rows
    row_block = load_block(unit_ptr, first_row, 0, WIDTH, ROWS, BLOCK_K)

    candidates = tl.zeros((ROWS,), tl.int32)
    for first_column in range(0, n, COLUMNS):
        nothing = candidates_only(
            tl.zeros((ROWS, COLUMNS), tl.float32),
            row_groups, first_row, first_column, groups_ptr, n, ROWS, COLUMNS, GROUPED,
        )
        candidates += tl.sum((nothing == 0).to(tl.int32), 1)
    rank = tl.floor(tl.load(q_ptr) * candidates.to(tl.float64)).to(tl.int32)

    # At most candidates - rank similarities are above `high` and more are above `low`.
    low = tl.full((ROWS,), -0x40000000, tl.int32)  # the number just above -2
    high = tl.full((ROWS,), 0x40000000, tl.int32)  # the number 2
    for step in range(32):
        middle = (low + high) >> 1
        pivot = number_at(middle)
        above = tl.zeros((ROWS,), tl.int32)
        for first_column in range(0, n, COLUMNS):
            s, _ = candidate_tile(
                unit_ptr, row_block, row_groups, first_row, first_column, groups_ptr, n,
                WIDTH, BLOCK_K, ROWS, COLUMNS, PRECISION, GROUPED,
            )
            above += tl.sum((s > pivot[:, None]).to(tl.int32), 1)
        enough = above <= candidates - rank
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle)

    smaller = number_at(high)
    above = tl.zeros((ROWS,), tl.int32)
    invalid = tl.zeros((ROWS,), tl.int32)
    larger = tl.full((ROWS,), INFINITY, tl.float32)
    for first_column in range(0, n, COLUMNS):
        s, _ = candidate_tile(
            unit_ptr, row_block, row_groups, first_row, first_column, groups_ptr, n,
            WIDTH, BLOCK_K, ROWS, COLUMNS, PRECISION, GROUPED,
        )
        is_above = s > smaller[:, None]
        above += tl.sum(is_above.to(tl.int32), 1)
        invalid += tl.sum(is_nan(s).to(tl.int32), 1)
        larger = tl.minimum(larger, tl.min(tl.where(is_above, s, INFINITY), 1))
    larger = tl.where(above < candidates - rank, smaller, larger)

    quantile = (smaller + larger) * 0.5
    # Between neighbouring floats there is none.
    quantile = tl.where(quantile < larger, quantile, smaller)
    quantile = tl.where(rank >= candidates, INFINITY, quantile)
    quantile = tl.where(rank <= 0, -INFINITY, quantile)
    quantile = tl.where(invalid > 0, float("nan"), quantile)
    tl.store(quantile_ptr + rows, quantile, mask=rows < n)


@triton.jit
def number_at(
    position,  # int32
):
    """The float at `position` in the order of all floats; 0 is at 0, -0 at -1."""
    return (position ^ ((position >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


def quantile(
    z: Tensor,  # (N, D)
    q: float,
    groups: Tensor | None,  # (N,) int64
) -> Tensor:
    """Halfway between order statistics floor(q n) and the next, (N,): the op `triton_quantile`.

    NaN for a row with a NaN similarity.
    """
    n = z.shape[0]
    z = z.contiguous()  # the order of a row's sum follows its strides
    how = plan(z)
    out = torch.empty(n, dtype=torch.float32, device=z.device)
    with device_of(z):
        unit, _ = normalize(z, how)
        launch(
            quantile_kernel, (how.row_blocks(), 1),
            unit, None if groups is None else groups.contiguous(),
            torch.full((), q, dtype=torch.float64, device=z.device), out, n,
            GROUPED=groups is not None, **how.constants(),
        )
    return out
