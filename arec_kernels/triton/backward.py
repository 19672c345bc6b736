"""Backward pass: the gradient of each row from one recomputed tile and O(N) row statistics.

A program owns a block of rows of dẑ and streams over all columns; entry (i, j) of its tile carries
both g_i dl_i/ds_ij and g_j dl_j/ds_ij, so nothing is added across programs: no atomics, the same
bits every run. The partner's entry depends on two rows only and comes from `normalize`.

Launches for local rows only are compiled and interpreted so far, and have not run on a card.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from arec_kernels.triton.config import Options, device_of, dropped_bits, plan
from arec_kernels.triton.launch import launch
from arec_kernels.triton.normalize import (
    DENOMINATOR,
    PARTNER,
    POSITIVE,
    SHIFT,
    THRESHOLD,
    load_rows,
    normalize_for_backward,
    row_weights,
)
from arec_kernels.triton.normalize_backward import normalize_backward, through_unit_rows
from arec_kernels.triton.tile import (
    LEFT_OUT,
    LOG2_E,
    block_of_program,
    candidate_tile,
    load_block,
    load_groups,
    nearest_tf32,
    reorder_products,
    round_mantissa,
)


@triton.jit
def backward_kernel(
    z_ptr,  # (N, D)
    unit_ptr,  # (N_PADDED, WIDTH)
    coefficients_ptr,  # (COEFFICIENTS, N_PADDED)
    groups_ptr,  # (N,) int64, None without groups
    grad_ptr,  # (N, D) out; where not WHOLE_ROWS (N_PADDED, WIDTH) fp32 of the normalised rows
    grad_loss_ptr,  # (N,), this and what follows only where THRESHOLD_GRAD
    count_ptr,  # (N,) int64
    positives_ptr,  # (N,)
    grad_threshold_ptr,  # (N,) out
    n,
    d,
    n_padded,
    z_row_stride,  # d, but with that in its place registers spill for 10.0
    grad_loss_stride,
    threshold_width,
    temperature,
    scale,  # log2(e) / temperature
    partner_weight,
    rest_weight,
    local_block,  # this and the next two: see block_of_program
    local_end,
    skipped,
    LOCAL: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUPED: tl.constexpr,
    POSITIVES: tl.constexpr,
    NEGATIVES: tl.constexpr,
    WEIGHTING: tl.constexpr,
    OWN_SHIFT: tl.constexpr,
    THRESHOLD_GRAD: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
    DROPPED_BITS: tl.constexpr,
):
    first_row = block_of_program(local_block, local_end, skipped, LOCAL) * ROWS
    first_d = tl.program_id(1) * BLOCK_D
    rows = first_row + tl.arange(0, ROWS)
    row_groups = load_groups(groups_ptr, rows, n, -1) if GROUPED else rows
    row_block = load_block(unit_ptr, first_row, 0, WIDTH, ROWS, BLOCK_K)
    of_row = coefficients_ptr + rows
    threshold = tl.load(of_row + THRESHOLD * n_padded)
    denominator = tl.load(of_row + DENOMINATOR * n_padded)
    shift = tl.load(of_row + SHIFT * n_padded)
    positive = tl.load(of_row + POSITIVE * n_padded)
    if THRESHOLD_GRAD:
        linear, center, exponential = soft_coefficients(
            rows, shift, count_ptr, positives_ptr, n, temperature, partner_weight, rest_weight,
            POSITIVES, NEGATIVES, WEIGHTING,
        )
        soft = tl.zeros((ROWS,), tl.float32)

    grad = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for first_column in range(0, n, COLUMNS):
        s, column_block = candidate_tile(
            unit_ptr, row_block, row_groups, first_row, first_column, groups_ptr, n,
            WIDTH, BLOCK_K, ROWS, COLUMNS, PRECISION, GROUPED,
        )
        of_column = coefficients_ptr + first_column + tl.arange(0, COLUMNS)
        column_threshold = tl.load(of_column + THRESHOLD * n_padded)
        column_denominator = tl.load(of_column + DENOMINATOR * n_padded)
        column_positive = tl.load(of_column + POSITIVE * n_padded)
        if OWN_SHIFT:
            column_shift = tl.load(of_column + SHIFT * n_padded)
            row_exponential = denominator_share(s * scale - shift[:, None])
            column_exponential = denominator_share(s * scale - column_shift[None, :])
        else:
            row_exponential = tl.exp2(s * scale - scale)
            column_exponential = row_exponential
        # Factors, and not conditions: these are fused multiply-adds, of which a card does the most.
        above_row = tl.where(s > threshold[:, None], 1.0, 0.0)
        above_column = tl.where(s > column_threshold[None, :], 1.0, 0.0)
        row_denominator = denominator[:, None]
        column_denominator = column_denominator[None, :]
        if NEGATIVES:
            row_denominator = row_denominator - above_row * row_denominator
            column_denominator = column_denominator - above_column * column_denominator
        entry = row_exponential * row_denominator + column_exponential * column_denominator
        if POSITIVES:
            entry -= above_row * positive[:, None]
            entry -= above_column * column_positive[None, :]
        if THRESHOLD_GRAD:
            soft += threshold_gradient(
                s, threshold, shift, linear, center, exponential, scale, threshold_width, n
            )
        if WIDTH != BLOCK_K or WIDTH != BLOCK_D:
            column_block = load_block(unit_ptr, first_column, first_d, WIDTH, COLUMNS, BLOCK_D)
        if column_block.dtype == tl.bfloat16:
            grad = tl.dot(entry.to(tl.bfloat16), column_block, grad)
        else:
            # fp16 has no room for the entries of many rows: its block goes up to TF32 instead.
            block = column_block.to(tl.float32)
            if PRECISION == "tf32":
                entry, block = reorder_products(nearest_tf32(entry), block)
            grad = tl.dot(entry, block, grad, input_precision=PRECISION)

    half = n // 2
    partners = tl.where(rows < half, rows + half, rows - half)
    columns = first_d + tl.arange(0, BLOCK_D)
    partner_block = tl.load(
        unit_ptr + partners.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    ).to(tl.float32)
    grad += tl.load(of_row + PARTNER * n_padded)[:, None] * partner_block

    if WHOLE_ROWS:
        z = load_rows(z_ptr, rows, z_row_stride, n, d, BLOCK_D)
        grad = round_mantissa(through_unit_rows(z, grad, of_row, n_padded), DROPPED_BITS)
        cells = rows.to(tl.int64)[:, None] * d + columns[None, :]
        inside = (rows < n)[:, None] & (columns < d)[None, :]
        tl.store(grad_ptr + cells, grad.to(grad_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(grad_ptr + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :], grad)

    if THRESHOLD_GRAD:
        g = tl.load(
            grad_loss_ptr + rows.to(tl.int64) * grad_loss_stride, mask=rows < n, other=0.0
        )
        mine = (rows < n) & (first_d == 0)
        tl.store(grad_threshold_ptr + rows, -g / threshold_width * soft, mask=mine)


@triton.jit
def denominator_share(
    exponent,  # (ROWS, COLUMNS), log2 of a pair's share of D
):
    """2^exponent, finite for pairs that are no part of D, to be multiplied by zero."""
    return tl.exp2(tl.where(exponent > 1.0, 1.0, exponent))


@triton.jit
def soft_coefficients(
    rows,  # (ROWS,)
    log2_denominator,  # (ROWS,)
    count_ptr,
    positives_ptr,
    n,
    temperature,
    partner_weight,
    rest_weight,
    POSITIVES: tl.constexpr,
    NEGATIVES: tl.constexpr,
    WEIGHTING: tl.constexpr,
):
    """(ROWS,) each, of dl_i/dq_ij = linear (s_ij - center) + exponential e^{s_ij/tau}/D_i."""
    count = tl.load(count_ptr + rows, mask=rows < n, other=0)
    positives = tl.load(positives_ptr + rows, mask=rows < n, other=0.0)
    total, _, positive = row_weights(count, partner_weight, rest_weight, POSITIVES, WEIGHTING)
    some = count > 0
    m = tl.where(some, count, 1).to(tl.float32)
    exponential = -total if NEGATIVES else total * 0.0
    linear = tl.where(some, -positive / temperature, 0.0)
    center = positives / m
    if POSITIVES and WEIGHTING == "printed":
        log_denominator = log2_denominator / LOG2_E
        center = temperature * (log_denominator - tl.log(rest_weight / m) + 1.0)
    return linear, center, exponential


@triton.jit
def threshold_gradient(
    s,  # (ROWS, COLUMNS)
    threshold,  # (ROWS,)
    log2_denominator,  # (ROWS,)
    linear,  # (ROWS,), this and the next two from soft_coefficients
    center,
    exponential,
    scale,
    threshold_width,
    n,
):
    """(ROWS,) sums of dl_i/dq_ij sigma(1 - sigma) over the candidates of the tile."""
    distance = tl.abs((s - threshold[:, None]) / threshold_width) * LOG2_E
    tail = tl.exp2(-distance)
    # One exponent for both factors: apart, one far above log D overflows before sigma' is 0.
    exponent = s * scale - log2_denominator[:, None] - distance
    # Of which the sum of a row is finite, as in the oracle: an upstream gradient may be 0.
    most = 126.0 - tl.log2(n * 1.0)
    share = tl.exp2(tl.where(exponent > most, most, exponent))
    value = exponential[:, None] * share + linear[:, None] * (s - center[:, None]) * tail
    return tl.sum(tl.where(s == LEFT_OUT, 0.0, value / ((1.0 + tail) * (1.0 + tail))), 1)


def backward(
    grad_loss: Tensor,  # (N,), or () after a reduction
    z: Tensor,  # (N, D)
    threshold: Tensor,  # (N,)
    groups: Tensor | None,  # (N,) int64
    log_denominator: Tensor,  # (N,), this and the next two from forward
    num_positives: Tensor,  # (N,) int64
    positives_similarity: Tensor,  # (N,)
    temperature: float,
    positives: bool,
    partner_weight: float,
    denominator: str,
    weighting: str,
    reduction: str,
    threshold_grad: float,
    local_begin: int,
    local_end: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of z, (N, D) in its type, and of the threshold, (N,): the op `triton_backward`.

    Two launches and one for a mean; above MAX_WHOLE_WIDTH columns a program holds only part of a row, and a third
    takes the gradient through the normalisation.
    """
    n, d = z.shape
    if reduction != "none":
        grad_loss = (grad_loss / n if reduction == "mean" else grad_loss).expand(n)
    options = Options(temperature, positives, partner_weight, weighting)
    z = z.contiguous()  # the order of a row's sum follows its strides
    how = plan(z)
    blocks, local = how.local_blocks(n, local_begin, local_end)
    whole_rows = how.block_d == how.width
    grad_z = torch.empty(n, d, dtype=z.dtype, device=z.device)
    grad_threshold = torch.empty(
        n if threshold_grad else 0, dtype=torch.float32, device=z.device
    )
    grad = grad_z
    if not whole_rows:
        grad = torch.empty(how.rows, how.width, dtype=torch.float32, device=z.device)
    with device_of(z):
        unit, coefficients = normalize_for_backward(
            z, how, grad_loss, threshold.contiguous(), log_denominator, num_positives, options
        )
        launch(
            backward_kernel, (blocks, how.width // how.block_d),
            z, unit, coefficients, None if groups is None else groups.contiguous(), grad,
            grad_loss, num_positives, positives_similarity, grad_threshold,
            n, d, how.rows, z.stride(0), grad_loss.stride(0), threshold_grad,
            *options.arguments(), *local,
            LOCAL=any(local),
            BLOCK_D=how.block_d,
            GROUPED=groups is not None,
            NEGATIVES=denominator == "negatives",
            THRESHOLD_GRAD=threshold_grad > 0,
            WHOLE_ROWS=whole_rows,
            DROPPED_BITS=dropped_bits(z.dtype),
            maxnreg=how.tile.registers,
            **options.constants(backward=True),
            **how.constants(),
        )
        if not whole_rows:
            normalize_backward(z, grad, coefficients, grad_z)
    return grad_z, grad_threshold
