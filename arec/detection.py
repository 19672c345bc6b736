"""Does SimThres find false negatives? Only data with planted intents can tell."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from arec.data.batches import Batch
from arec.objectives import AdaptiveRec
from arec_kernels import adaptive_info_nce


@torch.no_grad()
def false_negative_detection(
    objective: AdaptiveRec, batches: Iterable[Batch]
) -> dict[str, float]:
    """Precision and recall of M⁺ as detected false negatives, over all pairs of the batches.

    A pair of rows, not partners, is a true false negative when the planted intents of their targets
    are the same. The op itself counts: with the intents as groups it leaves such pairs out, so
    what M⁺ loses by that are the true ones.

    Args:
        batches: with ``intents``; the objective sees them without dropout.

    Returns:
        ``precision`` and ``recall`` of M⁺; ``base_rate``, the share of true false negatives among
        all candidates, which is the precision to expect of a random mask; ``selected``, the share
        of candidates in M⁺, which is the recall to expect of a random mask of that size. Ratios
        over nothing are 0.
    """
    objective.eval()
    totals = torch.zeros(2, 2, dtype=torch.int64)  # (all, of another intent) x (in M⁺, candidates)
    device = next(objective.parameters()).device
    for batch in batches:
        batch = batch.to(device)
        for z in objective.view_pairs(batch):
            k = objective.thresholds(z, objective.groups(batch))
            for row, groups in enumerate((None, batch.intents)):
                _, stats = adaptive_info_nce(z, k, groups=groups, histogram_bins=1)
                totals[row, 0] += stats.positives.sum().cpu()
                totals[row, 1] += stats.histogram.sum().cpu()
    (selected, candidates), (selected_false, candidates_false) = totals.tolist()
    selected_true, true = selected - selected_false, candidates - candidates_false
    return {
        "precision": selected_true / max(selected, 1),
        "recall": selected_true / max(true, 1),
        "base_rate": true / max(candidates, 1),
        "selected": selected / max(candidates, 1),
    }
