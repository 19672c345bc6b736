"""The gradient of rows from the gradient of the same rows on the unit sphere."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from arec_kernels.triton.config import dropped_bits
from arec_kernels.triton.launch import launch
from arec_kernels.triton.normalize import NORM, SCALE, load_rows, rows_a_program
from arec_kernels.triton.tile import round_mantissa


@triton.jit
def through_unit_rows(
    z,  # (ROWS, BLOCK) fp32
    grad_unit,  # (ROWS, BLOCK) fp32, gradient of the normalised rows
    of_row,  # (ROWS,) pointers to the coefficients of `normalize`
    n_padded,
):
    """Gradient (ROWS, BLOCK) of the rows themselves: the tangential part over the norm."""
    scale = tl.load(of_row + SCALE * n_padded)[:, None]
    norm = tl.load(of_row + NORM * n_padded)[:, None]
    # The row's largest must become 1 exactly: nothing is tangential to a row of one column.
    unit = tl.math.div_rn(z, tl.broadcast_to(scale, z.shape)) / norm
    return (grad_unit - tl.sum(grad_unit * unit, 1)[:, None] * unit) / norm / scale


@triton.jit
def normalize_backward_kernel(
    z_ptr,  # (N, D)
    grad_unit_ptr,  # (N_PADDED, width) fp32
    coefficients_ptr,  # (COEFFICIENTS, N_PADDED)
    grad_ptr,  # (N, D) out
    n,
    d,
    n_padded,
    width,
    z_row_stride,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    DROPPED_BITS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    z = load_rows(z_ptr, rows, z_row_stride, n, d, BLOCK)
    grad_unit = load_rows(grad_unit_ptr, rows, width, n, d, BLOCK)
    of_row = coefficients_ptr + tl.minimum(rows, n_padded - 1)
    grad = through_unit_rows(z, grad_unit, of_row, n_padded)
    grad = round_mantissa(grad, DROPPED_BITS)
    columns = tl.arange(0, BLOCK)
    inside = (rows < n)[:, None] & (columns < d)[None, :]
    cells = rows.to(tl.int64)[:, None] * d + columns[None, :]
    tl.store(grad_ptr + cells, grad.to(grad_ptr.dtype.element_ty), mask=inside)


def normalize_backward(
    z: Tensor,  # (N, D)
    grad_unit: Tensor,  # (N_PADDED, width) fp32
    coefficients: Tensor,  # (COEFFICIENTS, N_PADDED)
    grad_z: Tensor,  # (N, D) out
) -> None:
    """Writes `grad_z` from `grad_unit`, on the current device."""
    n, d = z.shape
    block = triton.next_power_of_2(d)
    rows = rows_a_program(block)
    launch(
        normalize_backward_kernel, (triton.cdiv(n, rows), 1),
        z, grad_unit, coefficients, grad_z, n, d, *grad_unit.shape, z.stride(0),
        BLOCK=block, ROWS=rows, DROPPED_BITS=dropped_bits(z.dtype),
    )
