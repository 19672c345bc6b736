"""The one interface between the trainer and a method."""

from __future__ import annotations

from torch import Tensor, nn

from arec.data.batches import Batch
from arec.models import Encoder
from arec.objectives.softmax import full_softmax_loss


class Objective(nn.Module):
    """A batch in, a loss and logged scalars out; and the ranking that goes with it.

    What must survive a checkpoint (an epoch's statistics, say) is a buffer.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise (0-d) and 0-d tensors to log, averaged over the epoch."""
        raise NotImplementedError

    def end_epoch(self) -> dict[str, float]:
        """Called after an epoch's last batch; scalars to log with the epoch."""
        return {}

    def score(
        self,
        inputs: Tensor,  # (B, L) int64, right-padded with 0
        lengths: Tensor,  # (B,)
    ) -> Tensor:  # (B, num_items + 1); column 0 is padding and means nothing
        """How well each item would come next."""
        return self.encoder(inputs, lengths, last_only=True) @ self.encoder.item_table.T


def next_item_loss(
    encoder: Encoder,
    hidden: Tensor,  # (B, L, d)
    batch: Batch,
) -> Tensor:
    """Mean cross-entropy of the next item, over all items and all real positions (SASRec)."""
    real = batch.targets > 0
    return full_softmax_loss(hidden[real], encoder.item_table, batch.targets[real])
