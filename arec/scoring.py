"""A model's scores of all items for the users of a split, and the metrics that they give."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from arec import parallel
from arec.data.batches import history_batches
from arec.data.split import LeaveOneOut, Stage
from arec.objectives import Objective
from arec.ranking import Candidates, ScoreBatch, evaluate_scores, users_at_once


@torch.no_grad()
def score_batches(objective: Objective, split: LeaveOneOut, stage: Stage) -> Iterator[ScoreBatch]:
    """Users and their scores of all items, batch by batch, each user once."""
    objective.eval()
    device = objective.device
    size = users_at_once(split.sequences.num_items, device.type)
    with parallel.progress(len(split.eval_users), "user", desc="ranking", delay=10, leave=False) as bar:
        for users, inputs, lengths in history_batches(
            split, stage, batch_size=size, max_length=objective.encoder.max_length
        ):
            yield users, objective.score(inputs.to(device), lengths.to(device))
            bar.update(len(users))


def evaluate_model(
    objective: Objective,
    split: LeaveOneOut,
    stage: Stage,
    candidates: Candidates | None = None,
    *,
    lists: bool = True,
) -> dict[str, dict[str, float]]:
    """The metrics of each protocol: see :func:`arec.ranking.evaluate_scores`."""
    return evaluate_scores(
        split, stage, lambda part: score_batches(objective, part, stage), candidates, lists=lists
    )
