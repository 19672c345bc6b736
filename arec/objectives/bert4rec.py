"""BERT4Rec: masked items with a bidirectional transformer (Sun et al., 2019), full softmax.

Scores are products with the item embeddings, as in every method here; the paper's output (Sec. 3.5)
has one more layer with GELU before them and a bias for each item.
"""

from __future__ import annotations

import torch
from torch import Tensor

from arec.config import Config
from arec.data.batches import Batch
from arec.models import Encoder
from arec.objectives.base import Objective, append
from arec.objectives.softmax import full_softmax_loss


class BERT4Rec(Objective):
    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = masked_item_loss(self.encoder, batch, self.config)
        return loss, {"L_basic": loss.detach()}


def masked_item_loss(encoder: Encoder, batch: Batch, config: Config) -> Tensor:  # 0-d
    """Mean cross-entropy of masked items, over all items; 0 when chance masked none.

    The sequence is a row's inputs and its last target. Each item is masked with probability
    ``mask_rate``; in a share ``last_mask_rate`` of the rows the last one alone is, for that is the
    position that ranking asks for (Sun et al., Sec. 3.6).
    """
    items, lengths = append(batch.inputs, batch.lengths, batch.last_targets[:, None])
    device = items.device
    masked = torch.rand(items.shape, device=device) < config.mask_rate
    last = torch.arange(items.shape[1], device=device) == lengths[:, None] - 1
    last_only = torch.rand(len(items), 1, device=device) < config.last_mask_rate
    masked = (items > 0) & torch.where(last_only, last, masked)
    hidden = encoder(items.masked_fill(masked, encoder.mask_token), lengths)
    return full_softmax_loss(hidden[masked], encoder.item_table, items[masked])
