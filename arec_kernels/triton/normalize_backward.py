"""The gradient of rows from the gradient of the same rows on the unit sphere."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from arec_kernels.triton.config import dropped_bits
from arec_kernels.triton.normalize import load_rows, rows_a_program, unit_rows
from arec_kernels.triton.tile import round_mantissa


@triton.jit
def through_unit_rows(
    z,  # (ROWS, BLOCK) fp32
    grad_unit,  # (ROWS, BLOCK) fp32, gradient of the normalised rows
):
    """Gradient (ROWS, BLOCK) of the rows themselves: the tangential part over the norm."""
    unit, scale, norm, is_zero = unit_rows(z)
    tangential = grad_unit - tl.sum(grad_unit * unit, 1)[:, None] * unit
    grad = tangential / norm[:, None] / scale[:, None]
    return tl.where(is_zero[:, None], 0.0, grad)


@triton.jit
def normalize_backward_kernel(
    z_ptr,  # (N, D)
    grad_unit_ptr,  # (N_PADDED, width) fp32
    grad_ptr,  # (N, D) out
    n,
    d,
    width,
    z_row_stride,
    z_column_stride,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    DROPPED_BITS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    z = load_rows(z_ptr, rows, z_row_stride, z_column_stride, n, d, BLOCK)
    grad_unit = load_rows(grad_unit_ptr, rows, width, 1, n, d, BLOCK)
    grad = round_mantissa(through_unit_rows(z, grad_unit), DROPPED_BITS)
    columns = tl.arange(0, BLOCK)
    inside = (rows < n)[:, None] & (columns < d)[None, :]
    cells = rows.to(tl.int64)[:, None] * d + columns[None, :]
    tl.store(grad_ptr + cells, grad.to(grad_ptr.dtype.element_ty), mask=inside)


def normalize_backward(
    z: Tensor,  # (N, D)
    grad_unit: Tensor,  # (N_PADDED, width) fp32
    grad_z: Tensor,  # (N, D) out
) -> None:
    """Writes `grad_z` from `grad_unit`, on the current device."""
    n, d = z.shape
    block = triton.next_power_of_2(d)
    rows = rows_a_program(block)
    normalize_backward_kernel[(triton.cdiv(n, rows),)](
        z, grad_unit, grad_z, n, d, grad_unit.shape[1], *z.stride(),
        BLOCK=block, ROWS=rows, DROPPED_BITS=dropped_bits(z.dtype),
    )
