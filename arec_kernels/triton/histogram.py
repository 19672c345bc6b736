"""Counts of the similarities over ordered candidate pairs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from arec_kernels.triton.config import device_of, plan
from arec_kernels.triton.launch import launch
from arec_kernels.triton.normalize import normalize
from arec_kernels.triton.tile import (
    candidate_tile,
    count_bins,
    load_block,
    load_groups,
)

# Bins that one program counts in its registers; more take several programs a block of rows.
MAX_BLOCK_BINS = 1024


@triton.jit
def histogram_kernel(
    unit_ptr,  # (N_PADDED, WIDTH)
    groups_ptr,  # (N,) int64, None without groups
    histogram_ptr,  # (bins,) int64, counted up
    n,
    bins,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUPED: tl.constexpr,
    BLOCK_BINS: tl.constexpr,
):
    first_row = tl.program_id(0) * ROWS
    first_bin = tl.program_id(1) * BLOCK_BINS
    rows = first_row + tl.arange(0, ROWS)
    row_groups = load_groups(groups_ptr, rows, n, -1) if GROUPED else rows
    row_block = load_block(unit_ptr, first_row, 0, WIDTH, ROWS, BLOCK_K)
    counts = tl.zeros((BLOCK_BINS,), tl.int32)
    for first_column in range(0, n, COLUMNS):
        s, _ = candidate_tile(
            unit_ptr, row_block, row_groups, first_row, first_column, groups_ptr, n,
            WIDTH, BLOCK_K, ROWS, COLUMNS, PRECISION, GROUPED,
        )
        counts += count_bins(s, first_bin, bins, BLOCK_BINS)
    in_bins = first_bin + tl.arange(0, BLOCK_BINS)
    # Integers: the same counts in any order.
    tl.atomic_add(histogram_ptr + in_bins, counts.to(tl.int64), mask=in_bins < bins, sem="relaxed")


def histogram(
    z: Tensor,  # (N, D)
    groups: Tensor | None,  # (N,) int64
    bins: int,
) -> Tensor:
    """Counts (bins,) int64 of bin floor((s + 1)/2 * bins): the op `triton_histogram`."""
    z = z.contiguous()  # the order of a row's sum follows its strides
    how = plan(z)
    counts = torch.zeros(bins, dtype=torch.int64, device=z.device)
    block_bins = min(MAX_BLOCK_BINS, triton.next_power_of_2(bins))
    with device_of(z):
        unit, _ = normalize(z, how)
        launch(
            histogram_kernel, (how.row_blocks(), triton.cdiv(bins, block_bins)),
            unit, None if groups is None else groups.contiguous(), counts, z.shape[0], bins,
            GROUPED=groups is not None, BLOCK_BINS=block_bins, **how.constants(),
        )
    return counts
