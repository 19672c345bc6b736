"""NDCG, MRR and Recall of a ranking in which exactly one item is relevant (leave-one-out)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def metrics_from_ranks(
    ranks,  # (E,) int, 1 is the top
    cutoffs: Sequence[int] = (5, 10),
) -> dict[str, float]:
    """Means over users of NDCG@k = 1/log2(rank + 1), MRR@k = 1/rank, Recall@k = 1, each 0 when
    rank > k.

    With one relevant item the ideal DCG is 1, and Recall is also called hit rate.

    Returns:
        {"NDCG@5": …, "MRR@5": …, "Recall@5": …, "NDCG@10": …, …}, cutoffs in the order given.

    Raises:
        ValueError: no ranks, a rank or a cutoff below 1.
    """
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or not len(ranks) or ranks.min() < 1:
        raise ValueError("ranks: expected (E,) whole numbers from 1, at least one of them")
    if min(cutoffs, default=1) < 1:
        raise ValueError(f"cutoffs: expected whole numbers from 1, got {tuple(cutoffs)}")
    gains = {"NDCG": 1 / np.log2(ranks + 1), "MRR": 1 / ranks, "Recall": np.ones(len(ranks))}
    return {
        f"{name}@{k}": float(np.where(ranks <= k, gain, 0).mean())
        for k in cutoffs
        for name, gain in gains.items()
    }
