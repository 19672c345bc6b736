"""Metrics of a ranking in which exactly one item is relevant (leave-one-out), and of its lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CUTOFFS = (5, 10, 20, 50)


def metrics_from_ranks(
    ranks,  # (E,) int, 1 is the top
    cutoffs: Sequence[int] = CUTOFFS,
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


def listed(
    items: np.ndarray,  # (E, K) int, recommended items, best first; 0 is none
    num_items: int,
    cutoffs: Sequence[int] = CUTOFFS,
) -> np.ndarray:
    """(len(cutoffs), num_items + 1) int64, in how many lists each item is among the first k."""
    counted = [np.bincount(items[:, :k].ravel(), minlength=num_items + 1) for k in cutoffs]
    return np.stack(counted).astype(np.int64)


def metrics_from_lists(
    given: np.ndarray,  # (len(cutoffs), num_items + 1) int, see `listed`
    targets: np.ndarray,  # (E,) int, what the users chose
    counts: np.ndarray,  # (num_items + 1,) int, how often each item occurs in the training part
    cutoffs: Sequence[int] = CUTOFFS,
) -> dict[str, float]:
    """What is recommended, whether right or wrong.

    Coverage@k is the share of all items that somebody gets among the first k. PopularityBias@k is
    the mean count in the training part of the items recommended among the first k, divided by that
    of what the users chose: 1 is no bias, more is a bias towards popular items. Ratios over nothing
    are 0.

    Returns:
        {"Coverage@5": …, "PopularityBias@5": …, …}, cutoffs in the order given.
    """
    chosen = counts[targets].mean()
    metrics = {}
    for k, times in zip(cutoffs, given[:, 1:]):
        metrics[f"Coverage@{k}"] = float(np.count_nonzero(times) / len(times))
        bias = times @ counts[1:] / times.sum() / chosen if times.any() and chosen else 0.0
        metrics[f"PopularityBias@{k}"] = float(bias)
    return metrics
