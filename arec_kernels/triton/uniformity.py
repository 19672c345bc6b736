"""The uniformity of normalised rows, Eq. 4: log mean exp(-2 |x_i - x_j|^2) over pairs i < j."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from arec_kernels.triton.config import device_of, plan
from arec_kernels.triton.launch import launch
from arec_kernels.triton.normalize import normalize
from arec_kernels.triton.tile import LOG2_E, load_block, similarity_tile


@triton.jit
def uniformity_kernel(
    unit_ptr,  # (N_PADDED, WIDTH)
    sum_ptr,  # (N,) out, over the pairs (i, j > i)
    n,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first_row = tl.program_id(0) * ROWS
    rows = first_row + tl.arange(0, ROWS)
    row_block = load_block(unit_ptr, first_row, 0, WIDTH, ROWS, BLOCK_K)
    # |x_i - x_j|^2 = 2 - 2 s_ij
    total = tl.zeros((ROWS,), tl.float32)
    for first_column in range(first_row // COLUMNS * COLUMNS, n, COLUMNS):
        s, _ = similarity_tile(
            unit_ptr, row_block, first_row, first_column, WIDTH, BLOCK_K, ROWS, COLUMNS, PRECISION
        )
        columns = first_column + tl.arange(0, COLUMNS)
        pair = (columns[None, :] > rows[:, None]) & (columns < n)[None, :]
        total += tl.sum(tl.where(pair, tl.exp2((s - 1.0) * (4.0 * LOG2_E)), 0.0), 1)
    tl.store(sum_ptr + rows, total, mask=rows < n)


def uniformity(
    x: Tensor,  # (N, D)
) -> Tensor:
    """The uniformity, fp32 (); NaN for fewer than two rows: the op `triton_uniformity`."""
    n = x.shape[0]
    x = x.contiguous()  # the order of a row's sum follows its strides
    how = plan(x)
    sums = torch.empty(n, dtype=torch.float32, device=x.device)
    with device_of(x):
        unit, _ = normalize(x, how)
        launch(uniformity_kernel, (how.row_blocks(), 1), unit, sums, n, **how.constants())
    return (sums.sum(dtype=torch.float64) / (n * (n - 1) // 2)).log().float()
