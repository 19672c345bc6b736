"""What SimThres does: the false negatives it finds, which only planted data can tell, and its spread."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from arec.data.batches import Batch
from arec.objectives import AdaptiveRec
from arec_kernels import adaptive_info_nce, row_similarity_quantile


@torch.no_grad()
def false_negative_detection(
    objective: AdaptiveRec, batches: Iterable[Batch]
) -> dict[str, float]:
    """Precision and recall of M⁺ as detected false negatives, over all pairs of the batches.

    A pair of rows, not partners, is a true false negative when the planted intents of their targets
    are the same. The op itself counts: with the intents as groups it leaves such pairs out, so
    what M⁺ loses by that are the true ones. Pairs that the objective knows to have one target are
    no candidates.

    Args:
        batches: with ``intents``; the objective sees them as in training, for without dropout rows
            are more alike, and more of them above k. k of ``simthres="epoch"`` is the one with which
            training goes on.

    Returns:
        ``precision`` and ``recall`` of M⁺; ``base_rate``, the share of true false negatives among
        all candidates, which is the precision to expect of a random mask; ``selected``, the share
        of candidates in M⁺, which is the recall to expect of a random mask of that size. Ratios
        over nothing are 0.
    """
    totals = torch.zeros(2, 2, dtype=torch.int64)
    with objective.same_chance():
        for batch in batches:
            totals += _counts(objective, batch.to(objective.device))
    (selected, candidates), (selected_false, candidates_false) = totals.tolist()
    selected_true, true = selected - selected_false, candidates - candidates_false
    return {
        "precision": selected_true / max(selected, 1),
        "recall": selected_true / max(true, 1),
        "base_rate": true / max(candidates, 1),
        "selected": selected / max(candidates, 1),
    }


def _counts(objective: AdaptiveRec, batch: Batch) -> Tensor:  # (2, 2) int64
    """Pairs in M⁺ and candidates: all, and those of different intents."""
    counts = torch.zeros(2, 2, dtype=torch.int64)
    known = objective.groups(batch)
    pairs = objective.view_pairs(batch)
    intents_of = [batch.intents]
    if len(pairs) == 2:  # "us", whose first pair has two views of the own sequence
        intents_of.insert(0, batch.intents[: len(batch.lengths)].repeat(2))
    for z, intents in zip(pairs, intents_of, strict=True):
        k = objective.thresholds(z, known)
        candidates = _above_and_all(z, k, known)
        others = _above_and_all(z, k, intents)  # of different intents
        if known is not None:
            # Target t and intent i both different, which no one grouping gives:
            # |¬t ∧ ¬i| = |¬t| + |¬i| − |¬t ∨ ¬i|.
            both = known.repeat(2) * (intents.max() + 1) + intents
            others += candidates - _above_and_all(z, k, both)
        counts += torch.stack([candidates, others])
    return counts


def _above_and_all(z: Tensor, k: Tensor, groups: Tensor | None) -> Tensor:  # (2,) int64
    """How many pairs are above their row's threshold, and how many there are."""
    _, stats = adaptive_info_nce(z, k, groups=groups, histogram_bins=1)
    return torch.stack([stats.positives.sum(), stats.histogram.sum()]).cpu()


@torch.no_grad()
def simthres_spread(
    objective: AdaptiveRec, batches: Iterable[Batch]
) -> dict[str, float | None] | None:
    """Whether a learnable SimThres is adapted to the rows, or one constant for all (Sec. 3.2.2).

    Args:
        batches: the objective sees them without dropout.

    Returns:
        ``mean`` and ``std`` of k over the rows; ``quantile_std``, that of the rows' own ``quantile``
        of similarities (Sec. 3.2.1), and ``correlation`` of the two, None where one is constant.
        None where no row has a quantile, as in batches of one.
    """
    thresholds, quantiles = [], []
    with objective.same_chance(training=False):
        for batch in batches:
            batch = batch.to(objective.device)
            groups = objective.groups(batch)
            for z in objective.view_pairs(batch):
                k = objective.thresholds(z, groups)  # of every row, of every sequence, or of all
                thresholds.append(k.repeat(len(z) // k.numel()))
                quantiles.append(row_similarity_quantile(z, objective.config.quantile, groups=groups))
    both = torch.stack([torch.cat(thresholds), torch.cat(quantiles)])  # (2, rows)
    both = both[:, both.isfinite().all(dim=0)]  # a small batch may leave a row no quantile
    if not both.numel():
        return None
    correlation = both.corrcoef()[0, 1].item()
    return {
        "mean": both[0].mean().item(),
        "std": both[0].std(correction=0).item(),
        "quantile_std": both[1].std(correction=0).item(),
        "correlation": correlation if math.isfinite(correlation) else None,
    }
