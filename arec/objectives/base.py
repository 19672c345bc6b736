"""The one interface between the trainer and a method."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arec.config import Config
from arec.data.batches import Batch
from arec.models import Encoder


class Objective(nn.Module):
    """A batch in, a loss and logged scalars out; and the ranking that goes with it.

    What must survive a checkpoint (an epoch's statistics, say) is a buffer. Of the encoder all that is
    asked for is what :class:`arec.models.Encoder` has in public: the call, ``item_table`` and the
    attributes ``num_items``, ``max_length``, ``causal`` and ``mask_token``.
    """

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise (0-d) and detached 0-d tensors to log, averaged over the epoch.

        Runs under autocast with ``precision = "bfloat16"``. The trainer weights both by
        ``batch.weight`` and logs the loss itself as "loss". Of several processes each has its share of
        the batch, and the mean of their losses counts: what compares rows with each other goes through
        `parallel.gather_views`, and a mean over targets, whose number differs, is `item_loss`'s.
        """
        raise NotImplementedError

    def end_epoch(self) -> dict[str, Any]:
        """Called after an epoch's last batch; what to log with the epoch, as JSON has it."""
        return {}

    def features(
        self,
        inputs: Tensor,  # (B, L) int64, right-padded with 0
        lengths: Tensor,  # (B,)
    ) -> Tensor:  # (B, d)
        """What stands for a sequence: the state that predicts its next item.

        Its products with ``encoder.item_table`` are the scores, to which BERT4Rec adds `item_biases`. Of
        a bidirectional encoder it is the state of a mask after the last item.

        Example, all embeddings of a run, with which `arec.recommend` ranks::

            import numpy as np
            import torch

            from arec.checkpoint import load_run
            from arec.data.batches import gather_windows

            config, split, objective = load_run("runs/mine")
            sequences = split.sequences
            items = objective.encoder.item_table[1:].detach().numpy()  # as in sequences.item_ids
            users = np.empty((len(sequences), config.hidden_size), np.float32)  # as in sequences.user_ids
            for some in np.array_split(np.arange(len(sequences)), len(sequences) // 256 + 1):
                lengths = np.minimum(sequences.lengths[some], config.max_length)
                inputs = gather_windows(sequences.items, sequences.offsets[some + 1], lengths)
                with torch.no_grad():
                    users[some] = objective.features(inputs, torch.from_numpy(lengths)).numpy()

        (`history_batches` beside it has what ranking may see: not the target of its stage.)
        """
        if not self.encoder.causal:
            inputs, lengths = append(inputs, lengths, self.encoder.mask_token)
        return self.encoder(inputs, lengths, last_only=True)

    def score(
        self,
        inputs: Tensor,  # (B, L) int64, right-padded with 0
        lengths: Tensor,  # (B,)
    ) -> Tensor:  # (B, num_items + 1); column 0 is padding and means nothing
        """How well each item would come next."""
        return self.features(inputs, lengths) @ self.encoder.item_table.T


def rows_where(mask: Tensor, *tensors: Tensor) -> list[Tensor]:  # (B, L); (B, L, …) -> (P, …)
    """What tensors have where a mask is true; a GPU is waited for once, with boolean indices each time."""
    places = mask.flatten().nonzero().squeeze(1)
    return [x.flatten(0, 1).index_select(0, places) for x in tensors]


def append(
    inputs: Tensor,  # (B, L) int64, right-padded with 0
    lengths: Tensor,  # (B,)
    item: Tensor | int,  # (B, 1), or the same for all
) -> tuple[Tensor, Tensor]:  # (B, L + 1), (B,)
    """One more item after each sequence's last."""
    return F.pad(inputs, (0, 1)).scatter(1, lengths[:, None], item), lengths + 1
