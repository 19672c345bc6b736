"""SASRec: next-item prediction with a causal transformer (Kang & McAuley, 2018), full softmax."""

from __future__ import annotations

from torch import Tensor

from arec.data.batches import Batch
from arec.objectives.base import Objective, next_item_loss


class SASRec(Objective):
    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = next_item_loss(self.encoder, self.encoder(batch.inputs, batch.lengths), batch)
        return loss, {"L_basic": loss.detach()}
