"""The oracle: every op in plain PyTorch over the full (N, N) matrix of similarities.

It defines what the backends compute and is what they are tested against (in float64, for that).
Autograd reaches through all of `adaptive_info_nce`, twice where wanted.

Notation: rows i and i + B are two views of one sequence, p(i) is the partner of i, s_ij the cosine
of rows i and j, N(i) the candidates of i (all j but i, p(i) and the known members of its group),
M+(i) the candidates above the threshold k_i and M-(i) the others. Sections and equations are those
of the AdaptiveRec paper.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from arec_kernels.arguments import (
    check_bins,
    check_finite,
    check_options,
    check_pair,
    check_quantile,
    check_views,
    compute_dtype,
    group_rows,
    threshold_rows,
)

ZERO_NORM = 1e-12  # a shorter row has cosine 0 with everything


class InfoNCEStats(NamedTuple):
    """What `adaptive_info_nce` counted on its way."""

    positives: Tensor  # (N,) int64: m_i = |M+(i)|, 0 with positives=False
    histogram: Tensor  # (histogram_bins,) int64: as `similarity_histogram`; NaN is not counted


def adaptive_info_nce(
    z: Tensor,  # (N, D), N = 2B
    threshold: Tensor | float,  # (N,), (B,) or a scalar
    *,
    temperature: float = 1.0,
    groups: Tensor | None = None,  # (N,) or (B,)
    positives: bool = True,
    partner_weight: float = 0.5,
    denominator: str = "negatives",
    weighting: str = "label",
    threshold_grad: float | None = None,
    histogram_bins: int | None = None,
    reduction: str = "mean",
) -> Tensor | tuple[Tensor, InfoNCEStats]:
    """`arec_kernels.adaptive_info_nce`, where the arguments are documented, in O(N^2) memory."""
    check_views(z)
    check_options(temperature, positives, partner_weight, denominator, weighting, threshold_grad,
                  histogram_bins, reduction)
    k = threshold_rows(threshold, z)
    if threshold_grad is None:
        k = k.detach()
    candidate = candidates(z, groups)
    s = cosine_similarities(z)
    row, partner = _partners(z)

    above = candidate & (s > k[:, None])  # M+; a NaN similarity is not in it and so reaches log D
    m = above.sum(dim=1)
    outside = ~candidate if denominator == "all" else ~candidate | above
    outside[row, partner] = False
    log_d = s.masked_fill(outside, -math.inf).div_(temperature).logsumexp(dim=1)

    logit_partner = s[row, partner] / temperature
    logit_positives = torch.where(above, s, 0.0).sum(dim=1) / temperature
    count = m.to(s.dtype)
    if threshold_grad is not None:
        # The indicator of M+ is q = hard + soft - soft.detach(): the hard one's value, the soft
        # one's gradient to k. Only the terms with soft are added here; their value is zero.
        # Where it is above 1/2 the slope is that of 1 - soft, as a logarithm: soft's own rounds to 0.
        x = (torch.where(candidate, s.detach(), 0.0) - k[:, None]) / threshold_grad
        sign = torch.where(x > 0, -1.0, 1.0)
        log_soft = F.logsigmoid(sign * x)
        q = torch.where(candidate, sign * (log_soft.exp() - log_soft.detach().exp()), 0.0)
        logits = torch.where(candidate, s, 0.0) / temperature
        if denominator == "negatives":
            # q times the candidate's share of D, in one exponential: of two one may be infinite, the other 0.
            share = logits - log_d[:, None]
            leaves = _bounded_exp(log_soft + share) - _bounded_exp(log_soft.detach() + share)
            log_d = log_d + torch.log1p(-torch.where(candidate, sign * leaves, 0.0).sum(dim=1))
        q = torch.where(m[:, None] > 0, q, 0.0)  # the branch m_i > 0 goes by the hard count
        logit_positives = logit_positives + (q * logits).sum(dim=1)
        count = count + q.sum(dim=1)

    alpha = partner_weight
    at_least_one = count.where(m > 0, 1.0)  # of a clamp the gradient at its bound differs by version
    if not positives:  # Eq. 8
        loss = log_d - logit_partner
        m = torch.zeros_like(m)
    elif weighting == "printed":  # Eq. 9, with the weights inside the logarithm
        loss = (
            (1 + count) * log_d
            - (logit_partner + logit_positives)
            - math.log(alpha)
            - count * torch.log((1 - alpha) / at_least_one)
        )
    else:  # Eq. 9, with the weights of the labels before the logarithm
        alone = 1.0 if weighting == "label" else alpha  # the partner's weight where M+ is empty
        w_partner = torch.full_like(log_d, alone).masked_fill(m > 0, alpha)
        w_total = torch.full_like(log_d, alone).masked_fill(m > 0, 1.0)
        w_positive = (1 - alpha) / at_least_one
        loss = w_total * log_d - (w_partner * logit_partner + w_positive * logit_positives)

    # A product and not a filled-in value, so that the gradient is NaN as well; that of k is zero where
    # nothing else leads to it.
    loss = reduce(loss * k.where(k.isnan(), 1.0), reduction)
    if histogram_bins is None:
        return loss
    return loss, InfoNCEStats(m, _histogram(s, candidate, histogram_bins))


@torch.no_grad()
def similarity_histogram(
    z: Tensor,  # (N, D), N = 2B
    bins: int,
    *,
    groups: Tensor | None = None,  # (N,) or (B,)
) -> Tensor:  # (bins,) int64
    """`arec_kernels.similarity_histogram` in O(N^2) memory."""
    check_views(z)
    check_bins("bins", bins)
    check_finite(z)
    return _histogram(cosine_similarities(z), candidates(z, groups), bins)


@torch.no_grad()
def row_similarity_quantile(
    z: Tensor,  # (N, D), N = 2B
    q: float,
    *,
    groups: Tensor | None = None,  # (N,) or (B,)
) -> Tensor:  # (N,)
    """`arec_kernels.row_similarity_quantile` in O(N^2) memory."""
    check_views(z)
    check_quantile(q)
    candidate = candidates(z, groups)
    s = cosine_similarities(z)
    n = candidate.sum(dim=1)
    r = (q * n.double()).floor().long()
    ordered = s.masked_fill(~candidate, math.inf).sort(dim=1).values
    at_r = ordered.gather(1, (r - 1).clamp(min=0)[:, None]).squeeze(1)
    after_r = ordered.gather(1, r.clamp(max=z.shape[0] - 1)[:, None]).squeeze(1)
    k = (at_r + after_r) / 2
    k = torch.where(k < after_r, k, at_r)  # between neighbouring floats there is none
    k = k.masked_fill(r == n, math.inf).masked_fill(r == 0, -math.inf)
    return k.masked_fill((candidate & s.isnan()).any(dim=1), math.nan)


@torch.no_grad()
def alignment_uniformity(
    x: Tensor,  # (rows, D)
    y: Tensor,  # (rows, D)
) -> tuple[Tensor, Tensor]:  # 0-d, 0-d
    """`arec_kernels.alignment_uniformity` in O(N^2) memory."""
    check_pair(x, y)
    return alignment(x, y), uniformity(x)


def alignment(x: Tensor, y: Tensor) -> Tensor:
    """Eq. 3: mean squared distance of paired rows on the unit sphere."""
    return (unit_rows(x) - unit_rows(y)).square().sum(dim=1).mean()


def uniformity(x: Tensor) -> Tensor:
    """Eq. 4: log of the mean of exp(-2 |x_i - x_j|^2) over pairs of rows; NaN for a single row."""
    s = cosine_similarities(x)
    n = x.shape[0]
    kernel = torch.exp(-2 * (2 - 2 * s)).fill_diagonal_(0.0)  # |x_i - x_j|^2 = 2 - 2 s_ij
    return torch.log(kernel.sum() / (n * (n - 1)))


def unit_rows(z: Tensor) -> Tensor:
    """Rows divided by their norm, in at least float32; rows shorter than `ZERO_NORM` are zero.

    No finite row overflows or underflows: the largest magnitude is divided out first, as a
    constant, since it does not change the direction.
    """
    z = z.to(compute_dtype(z))
    zero = torch.linalg.vector_norm(z.detach(), dim=1, keepdim=True) < ZERO_NORM
    z = z.masked_fill(zero, 1.0)  # any direction: masked again below, and with it the gradient
    z = z / z.detach().abs().amax(dim=1, keepdim=True)
    return (z / torch.linalg.vector_norm(z, dim=1, keepdim=True)).masked_fill(zero, 0.0)


def cosine_similarities(z: Tensor) -> Tensor:
    """(N, N) cosines; bfloat16 and float16 round the unit rows, not the similarities."""
    with nullcontext() if z.is_meta else torch.autocast(z.device.type, enabled=False):
        unit = unit_rows(z)
        if z.dtype is not unit.dtype:
            # The difference is exact, and a constant: a cast would round the gradient too.
            unit = unit + (unit.to(z.dtype) - unit).detach()
        return unit @ unit.T


def candidates(z: Tensor, groups: Tensor | None) -> Tensor:
    """(N, N) bool: j is in N(i)."""
    row, partner = _partners(z)
    candidate = torch.ones(z.shape[0], z.shape[0], dtype=torch.bool, device=z.device)
    groups = group_rows(groups, z)
    if groups is not None:
        candidate = (groups[:, None] != groups) | (groups < 0)
    candidate[row, row] = False
    candidate[row, partner] = False
    return candidate


def reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.mean()
    return loss.sum() if reduction == "sum" else loss


def _partners(z: Tensor) -> tuple[Tensor, Tensor]:
    """Row indices i and p(i), both (N,)."""
    row = torch.arange(z.shape[0], device=z.device)
    return row, row.roll(z.shape[0] // 2)


def _histogram(s: Tensor, candidate: Tensor, bins: int) -> Tensor:
    s = s.detach()
    counted = candidate & ~s.isnan()
    index = ((s + 1) / 2 * bins).nan_to_num().floor().clamp(0, bins - 1).long()
    histogram = torch.zeros(bins, dtype=torch.int64, device=s.device)
    return histogram.scatter_add_(0, index.flatten(), counted.flatten().long())


def _bounded_exp(x: Tensor) -> Tensor:
    """exp, of which the sum of a row is finite, and its slope: infinity times a zero would be NaN."""
    limit = math.log(torch.finfo(x.dtype).max / (4 * x.shape[1]))
    return (x - (x.detach() - limit).clamp_min(0)).exp()
