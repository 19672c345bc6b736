"""Forward pass: the loss of each row and the O(N) row statistics that backward recomputes from.

A program owns a block of rows and streams over all columns, so every row is summed in one order by
one program: no atomics (but integer ones for the histogram), the same bits every run. The schedule
is the unshared one: each pair is computed for row i and again for row j. Sharing would halve the
products and exponentials, but needs a synchronisation of the whole grid per round to stay both
deterministic and within O(N D) memory.

In fp32 without tensor cores the sums over tiles are Kahan's. These, the float64 of log D and launches for
local rows only are compiled and interpreted so far, and have not run on a card; the rest has.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from arec_kernels.reference import reduce
from arec_kernels.triton.config import Options, device_of, plan
from arec_kernels.triton.histogram import MAX_BLOCK_BINS, histogram
from arec_kernels.triton.launch import launch
from arec_kernels.triton.normalize import normalize, row_weights
from arec_kernels.triton.tile import (
    INFINITY,
    LEFT_OUT,
    at_least_lowest,
    block_of_program,
    candidate_tile,
    count_bins,
    is_nan,
    kahan_add,
    load_block,
    load_groups,
    partial_sums,
)


@triton.jit
def forward_kernel(
    unit_ptr,  # (N_PADDED, WIDTH)
    partner_ptr,  # (N,) similarity with the partner
    threshold_ptr,  # (N,)
    groups_ptr,  # (N,) int64, None without groups
    loss_ptr,  # (N,) out
    log_denominator_ptr,  # (N,) float64, out
    count_ptr,  # (N,) int64 out
    positives_ptr,  # (N,) out, sum of the similarities over M+
    histogram_ptr,  # (bins,) int64, counted up; not touched where BLOCK_BINS is 0
    n,
    bins,
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
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUPED: tl.constexpr,
    POSITIVES: tl.constexpr,
    NEGATIVES: tl.constexpr,
    WEIGHTING: tl.constexpr,
    OWN_SHIFT: tl.constexpr,
    BLOCK_BINS: tl.constexpr,
):
    first_row = block_of_program(local_block, local_end, skipped, LOCAL) * ROWS
    rows = first_row + tl.arange(0, ROWS)
    inside = rows < n
    given_threshold = tl.load(threshold_ptr + rows, mask=inside, other=INFINITY)
    threshold = at_least_lowest(given_threshold)
    row_groups = load_groups(groups_ptr, rows, n, -1) if GROUPED else rows
    row_block = load_block(unit_ptr, first_row, 0, WIDTH, ROWS, BLOCK_K)

    # Tensor cores leave every eighth column of a row to one thread, whose sums need no other thread.
    PARTS: tl.constexpr = 1 if PRECISION == "ieee" else 8
    # Of each row's denominator (exp((s - shift) / temperature)) and of M+; over whole rows at the end.
    total = tl.zeros((ROWS, PARTS), tl.float32)
    count = tl.zeros((ROWS, PARTS), tl.float32)
    positives = tl.zeros((ROWS, PARTS), tl.float32)
    # The rounding of products outweighs that of tens of thousands of additions, but for fp32.
    total_lost = tl.zeros((ROWS, PARTS), tl.float32)
    positives_lost = tl.zeros((ROWS, PARTS), tl.float32)
    shift = tl.full((ROWS,), LEFT_OUT if OWN_SHIFT else 1.0, tl.float32)
    if BLOCK_BINS:
        counts = tl.zeros((BLOCK_BINS,), tl.int32)

    for first_column in range(0, n, COLUMNS):
        s, _ = candidate_tile(
            unit_ptr, row_block, row_groups, first_row, first_column, groups_ptr, n,
            WIDTH, BLOCK_K, ROWS, COLUMNS, PRECISION, GROUPED,
        )
        above = (s > threshold[:, None]).to(tl.float32)
        if POSITIVES:
            count += partial_sums(above, PARTS)
            term = partial_sums(above * s, PARTS)
            if PRECISION == "ieee":
                positives, positives_lost = kahan_add(positives, positives_lost, term)
            else:
                positives += term
        if BLOCK_BINS:
            counts += count_bins(s, 0, bins, BLOCK_BINS)
        if NEGATIVES:
            s += above * LEFT_OUT
        if OWN_SHIFT:
            largest = tl.maximum(shift, tl.max(s, 1))
            decay = tl.exp2((shift - largest) * scale)[:, None]
            total *= decay
            total_lost *= decay
            term = partial_sums(tl.exp2((s - largest[:, None]) * scale), PARTS)
            shift = largest
        else:
            term = partial_sums(tl.exp2(s * scale - scale), PARTS)
        if PRECISION == "ieee":
            total, total_lost = kahan_add(total, total_lost, term)
        else:
            total += term

    total = tl.sum(total, 1)
    count = tl.sum(count.to(tl.int32), 1)
    positives = tl.sum(positives, 1)
    partner = tl.load(partner_ptr + rows, mask=inside, other=0.0)
    if OWN_SHIFT:
        largest = tl.maximum(shift, partner)
        total *= tl.exp2((shift - largest) * scale)
        shift = largest
    # The excess of log D over the partner's logit, which backward takes again, is all that is left of
    # a loss where the views are aligned: in float64 it does not round to noise.
    logit = tl.math.div_rn(partner, tl.full((ROWS,), temperature, tl.float32)).to(tl.float64)
    top = shift.to(tl.float64) / tl.full((ROWS,), temperature, tl.float64)
    log_denominator = top + tl.log(total.to(tl.float64) + tl.exp(logit - top))
    # Nothing but the partner in D makes the excess 0 exactly, and NaN stays NaN.
    log_denominator = tl.where(total == 0, logit, log_denominator)

    some = count > 0
    total_weight, _, positive_weight = row_weights(
        count, partner_weight, rest_weight, POSITIVES, WEIGHTING
    )
    # sum_j w_ij (s_ip - s_ij) over M+, so that the logits of the partner cancel before they round.
    gap = positive_weight * (tl.where(some, count, 0).to(tl.float32) * partner - positives)
    loss = total_weight * (log_denominator - logit).to(tl.float32) + gap / temperature
    if POSITIVES and WEIGHTING == "printed":
        m = tl.where(some, count, 1).to(tl.float32)
        loss -= tl.log(tl.full((ROWS,), partner_weight, tl.float32))
        loss -= tl.where(some, m * tl.log(rest_weight / m), 0.0)
    loss = tl.where(is_nan(given_threshold), given_threshold, loss)
    log_denominator = tl.where(is_nan(given_threshold), given_threshold, log_denominator)
    tl.store(loss_ptr + rows, loss, mask=inside)
    tl.store(log_denominator_ptr + rows, log_denominator, mask=inside)
    tl.store(count_ptr + rows, count.to(tl.int64), mask=inside)
    tl.store(positives_ptr + rows, positives, mask=inside)
    if BLOCK_BINS:
        in_bins = tl.arange(0, BLOCK_BINS)
        tl.atomic_add(
            histogram_ptr + in_bins, counts.to(tl.int64), mask=in_bins < bins, sem="relaxed"
        )


def forward(
    z: Tensor,  # (N, D)
    threshold: Tensor,  # (N,)
    groups: Tensor | None,  # (N,) int64
    temperature: float,
    positives: bool,
    partner_weight: float,
    denominator: str,
    weighting: str,
    reduction: str,
    histogram_bins: int,
    local_begin: int,
    local_end: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Reduced loss; log D, m, sum of s over M+, each (N,); and the histogram: the op `triton_forward`.

    Two launches, one more for a reduction, one for a histogram's zeros, and two above MAX_BLOCK_BINS.
    """
    n = z.shape[0]
    options = Options(temperature, positives, partner_weight, weighting)
    z = z.contiguous()  # the order of a row's sum follows its strides
    how = plan(z)
    blocks, local = how.local_blocks(n, local_begin, local_end)
    loss, positives_similarity = (
        torch.empty(n, dtype=torch.float32, device=z.device) for _ in range(2)
    )
    log_denominator = torch.empty(n, dtype=torch.float64, device=z.device)
    num_positives = torch.empty(n, dtype=torch.int64, device=z.device)
    counted_here = 0 < histogram_bins <= MAX_BLOCK_BINS
    if histogram_bins and not counted_here:
        counts = histogram(z, groups, histogram_bins)
    else:
        counts = torch.zeros(histogram_bins, dtype=torch.int64, device=z.device)
    with device_of(z):
        unit, partner_similarity = normalize(z, how)
        launch(
            forward_kernel, (blocks, 1),
            unit, partner_similarity, threshold.contiguous(),
            None if groups is None else groups.contiguous(),
            loss, log_denominator, num_positives, positives_similarity, counts, n, histogram_bins,
            *options.arguments(), *local,
            LOCAL=any(local),
            GROUPED=groups is not None,
            NEGATIVES=denominator == "negatives",
            BLOCK_BINS=triton.next_power_of_2(histogram_bins) if counted_here else 0,
            **options.constants(),
            **how.constants(),
        )
    return reduce(loss, reduction), log_denominator, num_positives, positives_similarity, counts
