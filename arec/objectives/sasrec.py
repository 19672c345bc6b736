"""SASRec: next-item prediction with a causal transformer (Kang & McAuley, 2018), full softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from arec.data.batches import Batch
from arec.models import Encoder
from arec.objectives.base import Objective, rows_where
from arec.objectives.softmax import item_loss


class SASRec(Objective):
    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, _ = next_item_loss(self.encoder, batch, self.config.sampled_negatives)
        return loss, {"L_basic": loss.detach()}


def next_item_loss(
    encoder: Encoder, batch: Batch, sampled_negatives: int | None
) -> tuple[Tensor, Tensor]:  # 0-d, (B, d)
    """Mean cross-entropy of the next item, over all items or a sample, at all positions with a target.

    Returns:
        The loss, and the hidden states of the anchors, which came with it.
    """
    if batch.targets.ndim == 1:
        last = encoder(batch.inputs, batch.lengths, last_only=True)
        return item_loss(last, encoder.item_table, batch.targets, sampled_negatives), last
    hidden = encoder(batch.inputs, batch.lengths)
    states, targets = rows_where(batch.targets > 0, hidden, batch.targets)
    loss = item_loss(states, encoder.item_table, targets, sampled_negatives)
    rows = torch.arange(len(hidden), device=hidden.device)
    return loss, hidden[rows, batch.anchor_lengths - 1]
