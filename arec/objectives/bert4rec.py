"""BERT4Rec: masked items with a bidirectional transformer (Sun et al., 2019), full softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arec.config import Config
from arec.data.batches import Batch
from arec.models import Encoder
from arec.objectives.base import Objective, append, rows_where
from arec.objectives.softmax import item_loss


class BERT4Rec(Objective):
    """Scores are ``GELU(h W + b) Eᵀ + c`` (Sec. 3.5): between a state h and the item embeddings E a
    layer that the other methods do not have, and a bias for each item. The layer's output is
    normalised, as in the authors' program."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        items, width = encoder.item_table.shape
        self.output = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.item_biases = nn.Parameter(torch.zeros(items))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        hidden, targets = masked_states(self.encoder, batch, self.config)
        # A bias is an item's product with a state's component that is always 1.
        states = F.pad(self.output(hidden), (0, 1), value=1)
        table = torch.cat([self.encoder.item_table, self.item_biases[:, None]], dim=1)
        loss = item_loss(states, table, targets, self.config.sampled_negatives)
        return loss, {"L_basic": loss.detach()}

    def features(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        return self.output(super().features(inputs, lengths))

    def score(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        return super().score(inputs, lengths) + self.item_biases


def masked_states(
    encoder: Encoder, batch: Batch, config: Config
) -> tuple[Tensor, Tensor]:  # (P, d), (P,) int64
    """States of masked items, and the items; of none when chance masked none.

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
    states, targets = rows_where(masked, hidden, items)
    return states, targets
