"""Rows on the unit sphere, once a pass, and all that depends on one row only.

A row is scaled by its largest magnitude before it is squared, so that no finite row overflows or
underflows; a row with norm below 1e-12 becomes zero. The result is rounded to what the matrix units
read (bfloat16, float16, TF32) and padded with zeros to whole tiles, so that no other kernel ever
reads past the end.

The float64 with which the backward pass takes log D is compiled and interpreted so far, and has not
run on a card; the rest has.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from arec_kernels.triton.config import Options, Plan
from arec_kernels.triton.launch import launch
from arec_kernels.triton.tile import INFINITY, LOG2_E, at_least_lowest, round_mantissa

MIN_NORM = tl.constexpr(1e-12)

# The rows of `coefficients`, what the backward kernel needs of a row.
THRESHOLD = tl.constexpr(0)
DENOMINATOR = tl.constexpr(1)  # times the exponential: g W / (tau D)
SHIFT = tl.constexpr(2)  # log2 D, used where D is not part of DENOMINATOR, and for the gradient of thresholds
POSITIVE = tl.constexpr(3)  # g times the weight of one positive, over tau
PARTNER = tl.constexpr(4)  # of the partner's row in the gradient, from both sides
SCALE = tl.constexpr(5)  # largest magnitude
NORM = tl.constexpr(6)  # norm over SCALE; infinite for a zero row, whose gradient is then zero
COEFFICIENTS = 7


@triton.jit
def unit_rows(
    z,  # (ROWS, BLOCK) fp32
):
    """Normalised rows (ROWS, BLOCK), and (ROWS,) each: largest magnitude, norm over it.

    The norm of a zero row is infinite, which makes the row and its gradient zero.
    """
    largest = tl.max(tl.abs(z), 1)
    scale = tl.where(largest > 0, largest, 1.0)
    scaled = tl.math.div_rn(z, tl.broadcast_to(scale[:, None], z.shape))
    norm = tl.math.sqrt_rn(tl.sum(scaled * scaled, 1))
    norm = tl.where(scale * norm < MIN_NORM, INFINITY, norm)
    return tl.math.div_rn(scaled, tl.broadcast_to(norm[:, None], z.shape)), scale, norm


@triton.jit
def load_rows(
    z_ptr,
    rows,  # (ROWS,)
    row_stride,
    n,
    d,
    BLOCK: tl.constexpr,
):
    """Rows of z, (ROWS, BLOCK) in fp32, zero past the last row and column."""
    columns = tl.arange(0, BLOCK)
    offsets = (rows.to(tl.int64) * row_stride)[:, None] + columns.to(tl.int64)[None, :]
    mask = (rows < n)[:, None] & (columns < d)[None, :]
    return tl.load(z_ptr + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def row_weights(
    positives_count,  # (ROWS,) m_i
    partner_weight,
    rest_weight,
    POSITIVES: tl.constexpr,
    WEIGHTING: tl.constexpr,
):
    """(ROWS,) each: total weight W_i, weight of the partner, weight of one positive."""
    some = positives_count > 0
    m = tl.where(some, positives_count, 1).to(tl.float32)
    one = tl.full(m.shape, 1.0, tl.float32)
    if not POSITIVES:
        total, partner, positive = one, one, one * 0.0
    elif WEIGHTING == "printed":
        total, partner, positive = tl.where(some, m + 1.0, 1.0), one, one
    else:
        partner = tl.where(some, partner_weight, 1.0)
        total = one
        if WEIGHTING == "label-unnormalised":
            partner = one * partner_weight
            total = tl.where(some, 1.0, partner_weight)
        positive = tl.where(some, rest_weight / m, 0.0)
    return total, partner, positive


@triton.jit
def normalize_kernel(
    z_ptr,  # (N, D)
    unit_ptr,  # (N_PADDED, WIDTH) out
    partner_ptr,  # (N,) out, similarity with the partner; only where not BACKWARD
    grad_loss_ptr,  # (N,), this and the pointers below only where BACKWARD
    threshold_ptr,  # (N,)
    log_denominator_ptr,  # (N,) float64
    count_ptr,  # (N,) int64
    coefficients_ptr,  # (COEFFICIENTS, N_PADDED) out
    n,
    d,
    n_padded,
    z_row_stride,
    grad_loss_stride,
    temperature,
    scale,  # log2(e) / temperature
    partner_weight,
    rest_weight,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    DROPPED_BITS: tl.constexpr,
    BACKWARD: tl.constexpr,
    OWN_SHIFT: tl.constexpr,
    POSITIVES: tl.constexpr,
    WEIGHTING: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    z = load_rows(z_ptr, rows, z_row_stride, n, d, BLOCK)
    unit, size, norm = unit_rows(z)
    unit = round_mantissa(unit, DROPPED_BITS).to(unit_ptr.dtype.element_ty)
    columns = tl.arange(0, BLOCK)
    cells = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    tl.store(unit_ptr + cells, unit, mask=(rows < n_padded)[:, None] & (columns < WIDTH)[None, :])

    others = tl.where(rows < n // 2, rows + n // 2, rows - n // 2)
    z_other = load_rows(z_ptr, others, z_row_stride, n, d, BLOCK)
    unit_other, _, _ = unit_rows(z_other)
    unit_other = round_mantissa(unit_other, DROPPED_BITS).to(unit_ptr.dtype.element_ty)
    s = tl.sum(unit.to(tl.float32) * unit_other.to(tl.float32), 1)
    if not BACKWARD:
        tl.store(partner_ptr + rows, s, mask=rows < n)
    else:
        # The division cannot be contracted with the subtraction below, so that a row whose partner
        # is all of its denominator gets probability 1 exactly, and without positives gradient 0.
        logit = tl.math.div_rn(s, tl.full(s.shape, temperature, tl.float32))
        denominator, shift, positive, partner = row_coefficients(
            rows, logit, grad_loss_ptr, log_denominator_ptr, count_ptr, n, grad_loss_stride,
            temperature, partner_weight, rest_weight, POSITIVES, WEIGHTING,
        )
        _, _, _, partner_other = row_coefficients(
            others, logit, grad_loss_ptr, log_denominator_ptr, count_ptr, n, grad_loss_stride,
            temperature, partner_weight, rest_weight, POSITIVES, WEIGHTING,
        )
        if not OWN_SHIFT:
            denominator *= tl.exp2(scale - shift)
        threshold = at_least_lowest(tl.load(threshold_ptr + rows, mask=rows < n, other=INFINITY))
        out = coefficients_ptr + rows
        inside = rows < n_padded
        tl.store(out + THRESHOLD * n_padded, threshold, mask=inside)
        tl.store(out + DENOMINATOR * n_padded, denominator, mask=inside)
        tl.store(out + SHIFT * n_padded, shift, mask=inside)
        tl.store(out + POSITIVE * n_padded, positive, mask=inside)
        tl.store(out + PARTNER * n_padded, partner + partner_other, mask=inside)
        tl.store(out + SCALE * n_padded, size, mask=inside)
        tl.store(out + NORM * n_padded, norm, mask=inside)


@triton.jit
def row_coefficients(
    rows,  # (ROWS,)
    logit,  # (ROWS,) with the partner
    grad_loss_ptr,
    log_denominator_ptr,
    count_ptr,
    n,
    grad_loss_stride,
    temperature,
    partner_weight,
    rest_weight,
    POSITIVES: tl.constexpr,
    WEIGHTING: tl.constexpr,
):
    """(ROWS,) each: g W / tau, log2 D, g times a positive's weight / tau, g dl_i/ds_ip.

    Rows past the last have zeros.
    """
    inside = rows < n
    g = tl.load(grad_loss_ptr + rows.to(tl.int64) * grad_loss_stride, mask=inside, other=0.0)
    g /= temperature
    log_denominator = tl.load(log_denominator_ptr + rows, mask=inside, other=0.0)
    count = tl.load(count_ptr + rows, mask=inside, other=0)
    total, partner, positive = row_weights(count, partner_weight, rest_weight, POSITIVES, WEIGHTING)
    # In float64: for aligned views the probability is near 1, and what is missing is the gradient.
    probability = tl.exp(logit.to(tl.float64) - log_denominator)
    return (
        g * total,
        (log_denominator * LOG2_E).to(tl.float32),
        g * positive,
        g * (total * probability - partner).to(tl.float32),
    )


def normalize(z: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Normalised rows (plan.rows, plan.width), and each one's similarity with its partner, (N,)."""
    unit = torch.empty(plan.rows, plan.width, dtype=plan.unit_dtype, device=z.device)
    partner_similarity = torch.empty(z.shape[0], dtype=torch.float32, device=z.device)
    launch(
        normalize_kernel, _grid(plan),
        z, unit, partner_similarity, None, None, None, None, None,
        *z.shape, plan.rows, z.stride(0), 0, 1.0, 1.0, 1.0, 0.0,
        POSITIVES=False, WEIGHTING="", OWN_SHIFT=False, BACKWARD=False, **_constants(plan),
    )
    return unit, partner_similarity


def normalize_for_backward(
    z: Tensor,
    plan: Plan,
    grad_loss: Tensor,
    threshold: Tensor,
    log_denominator: Tensor,
    num_positives: Tensor,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Normalised rows (plan.rows, plan.width), and COEFFICIENTS of each, fp32 (7, plan.rows)."""
    n, d = z.shape
    unit = torch.empty(plan.rows, plan.width, dtype=plan.unit_dtype, device=z.device)
    coefficients = torch.empty(COEFFICIENTS, plan.rows, dtype=torch.float32, device=z.device)
    launch(
        normalize_kernel, _grid(plan),
        z, unit, None, grad_loss, threshold, log_denominator, num_positives, coefficients,
        n, d, plan.rows, z.stride(0), grad_loss.stride(0), *options.arguments(),
        BACKWARD=True, **options.constants(backward=True), **_constants(plan),
    )
    return unit, coefficients


def rows_a_program(block: int) -> int:
    """Rows of `block` columns for one program that works on rows alone."""
    return max(1, 2048 // block)


def _grid(plan: Plan) -> tuple[int, int]:
    return triton.cdiv(plan.rows, rows_a_program(triton.next_power_of_2(plan.width))), 1


def _constants(plan: Plan) -> dict[str, int]:
    block = triton.next_power_of_2(plan.width)
    return {
        "WIDTH": plan.width,
        "BLOCK": block,
        "ROWS": rows_a_program(block),
        "DROPPED_BITS": plan.dropped_bits,
    }
