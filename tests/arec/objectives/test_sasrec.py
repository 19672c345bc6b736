from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F


def test_every_real_position_predicts_the_next_item(build, batch) -> None:
    objective = build(method="sasrec")
    loss, _ = objective(batch)
    real = batch.targets > 0
    hidden = objective.encoder(batch.inputs, batch.lengths)[real]
    logits = hidden @ objective.encoder.item_table[1:].T
    torch.testing.assert_close(loss, F.cross_entropy(logits, batch.targets[real] - 1))


def test_rows_of_prefixes_predict_after_the_last_item_only(build, batch) -> None:
    objective = build(method="sasrec")
    loss, _ = objective(dataclasses.replace(batch, targets=batch.anchor_targets))
    logits = objective.score(batch.inputs, batch.lengths)[:, 1:]
    torch.testing.assert_close(loss, F.cross_entropy(logits, batch.anchor_targets - 1))
