"""Who is ranked against what: the rank of each target among all items, in two protocols.

"unfiltered" ranks the target among all items, "filtered" leaves out the items of the user's
history. Ranking knows scores only: a model, a baseline and the generator of the built-in data all
hand batches of (users, scores) to `evaluate_scores`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from arec.data.split import LeaveOneOut, Stage
from arec.metrics import metrics_from_ranks

# Users (B,), numbered as in `Sequences`, and their scores (B, num_items + 1).
ScoreBatch = tuple[np.ndarray, torch.Tensor]


def target_ranks(
    scores: torch.Tensor,  # (B, V + 1) float, column 0 is padding
    targets: torch.Tensor,  # (B,) int64, 1..V
    exclude: torch.Tensor | None = None,  # (B, H) int64, no candidates; filled up with 0
) -> torch.Tensor:
    """(B,) int64, 1 + the number of other candidates whose score is not below the target's.

    Ties count against the target. Nothing is below NaN and NaN is below nothing, so a target with
    NaN is last. Padding is never a candidate, the target always is, excluded or not.
    """
    targets = targets.unsqueeze(1)  # (B, 1)
    ahead = ~(scores < scores.gather(1, targets))
    if exclude is not None:
        ahead.scatter_(1, exclude, False)
    ahead.scatter_(1, targets, False)
    return 1 + ahead[:, 1:].sum(dim=1)


def rank_targets(
    split: LeaveOneOut, stage: Stage, batches: Iterable[ScoreBatch]
) -> dict[str, np.ndarray]:
    """Ranks of the targets of a stage in each protocol.

    Args:
        batches: users and scores, together each of `split.eval_users` once, in any order; scores
            of any float dtype, on any device.

    Returns:
        {"filtered": (E,) int64, "unfiltered": (E,) int64} in the order of `split.eval_users`.

    Raises:
        ValueError: `batches` misses a user, repeats one, or holds one that is not ranked.
    """
    num_ranked = len(split.eval_users)
    targets, lengths = split.targets(stage), split.history_lengths(stage)
    ranks = {name: np.zeros(num_ranked, dtype=np.int64) for name in ("filtered", "unfiltered")}
    for users, scores in batches:
        rows = np.searchsorted(split.eval_users, users)
        if (rows == num_ranked).any() or (split.eval_users[rows] != users).any():
            raise ValueError("batches: holds a user that is not in split.eval_users")
        if any(ranks["filtered"][rows]) or len(np.unique(rows)) < len(rows):
            raise ValueError("batches: holds a user twice")
        target = torch.from_numpy(targets[rows].astype(np.int64)).to(scores.device)
        history = _padded(split, users, lengths[rows]).to(scores.device)
        ranks["filtered"][rows] = target_ranks(scores, target, history).cpu().numpy()
        ranks["unfiltered"][rows] = target_ranks(scores, target).cpu().numpy()
    missing = np.count_nonzero(ranks["filtered"] == 0)
    if missing:
        raise ValueError(f"batches: {missing} of {num_ranked} users are missing")
    return ranks


def evaluate_scores(
    split: LeaveOneOut,
    stage: Stage,
    batches: Iterable[ScoreBatch],
    cutoffs: Sequence[int] = (5, 10),
) -> dict[str, dict[str, float]]:
    """{"filtered": metrics, "unfiltered": metrics} as `metrics_from_ranks` gives them; arguments
    and errors as in `rank_targets`."""
    ranks = rank_targets(split, stage, batches)
    return {protocol: metrics_from_ranks(r, cutoffs) for protocol, r in ranks.items()}


def popularity_scores(split: LeaveOneOut, batch_size: int = 256) -> Iterator[ScoreBatch]:
    """The popularity baseline: every user gets the counts of the items in the training part."""
    counts = torch.from_numpy(split.train_counts()).to(torch.float64)
    for rows in _slices(len(split.eval_users), batch_size):
        users = split.eval_users[rows]
        yield users, counts.expand(len(users), -1)


def oracle_scores(split: LeaveOneOut, stage: Stage, batch_size: int = 256) -> Iterator[ScoreBatch]:
    """The upper bound of the built-in data, see `PlantedTruth.next_item_probabilities`.

    Raises:
        ValueError: the data has no planted truth.
    """
    planted = split.sequences.planted
    if planted is None:
        raise ValueError(f"split: expected the built-in data, got {split.sequences.name}")
    lengths = split.history_lengths(stage)
    for rows in _slices(len(split.eval_users), batch_size):
        users = split.eval_users[rows]
        scores = planted.next_item_probabilities(split.sequences, users, lengths[rows])
        yield users, torch.from_numpy(scores)


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, start + size)


def _padded(split: LeaveOneOut, users: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """(B, longest) int64, the histories of `users`, filled up with 0."""
    position = np.arange(lengths.max(initial=0))
    inside = position < lengths[:, None]  # (B, longest)
    starts = split.sequences.offsets[users]
    history = np.zeros(inside.shape, dtype=np.int64)
    history[inside] = split.sequences.items[(starts[:, None] + position)[inside]]
    return torch.from_numpy(history)
