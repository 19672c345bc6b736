"""What DuoRec and AdaptiveRec share: next-item loss + λ_cl · a contrastive loss on view pairs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from arec.data.batches import Batch
from arec.models import Encoder
from arec.objectives.base import Objective, next_item_loss

Views = Literal["un", "su", "us", "us_x"]


class ContrastiveObjective(Objective):
    """``L = L_basic + λ_cl · L_cl`` (Eq. 9), L_cl summed over the view pairs.

    Args:
        views: the pairs of DuoRec (Qiu et al., 2022) for a sequence with features h: "un" (h, h′),
            h′ a second dropout pass; "su" (h, h_sem), h_sem another user's sequence with the same
            target; "us" both pairs; "us_x" (h′, h_sem).
        same_target_negatives: False takes rows with the same target, known to be no negatives of
            each other, out of the denominator.
    """

    def __init__(
        self, encoder: Encoder, *, views: Views, lambda_cl: float, same_target_negatives: bool
    ) -> None:
        super().__init__(encoder)
        self.views = views
        self.lambda_cl = lambda_cl
        self.same_target_negatives = same_target_negatives

    def contrast(
        self,
        z: Tensor,  # (2B, d) rows i and i + B are two views of one sequence
        groups: Tensor | None,  # (B,) rows of the same group are no negatives
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What one view pair adds to the loss (0-d, λ_cl applied) and scalars to log."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = self.encoder(batch.inputs, batch.lengths)
        loss = next_item_loss(self.encoder, hidden, batch)
        logged = {"L_basic": loss.detach()}
        if not self.lambda_cl:
            return loss, logged
        rows = torch.arange(len(hidden), device=hidden.device)
        pairs = self.view_pairs(batch, hidden[rows, batch.lengths - 1])
        for z in pairs:
            weighted, scalars = self.contrast(z, self.groups(batch))
            loss = loss + weighted
            for name, value in scalars.items():
                logged[name] = logged.get(name, 0) + value.detach() / len(pairs)
        return loss, logged

    def groups(self, batch: Batch) -> Tensor | None:  # (B,)
        """Rows of the same group are known to be no negatives of each other."""
        return None if self.same_target_negatives else batch.anchor_targets

    def view_pairs(
        self,
        batch: Batch,
        anchor: Tensor | None = None,  # (B, d) the anchors' features if the caller has them
    ) -> list[Tensor]:  # (2B, d) each
        """Features of the views, two by two."""

        def own() -> Tensor:
            return self.encoder(batch.inputs, batch.lengths, last_only=True)

        def same_target() -> Tensor:
            return self.encoder(batch.partner_inputs, batch.partner_lengths, last_only=True)

        if anchor is None and self.views != "us_x":
            anchor = own()
        match self.views:
            case "un":
                pairs = [(anchor, own())]
            case "su":
                pairs = [(anchor, same_target())]
            case "us":
                pairs = [(anchor, own()), (anchor, same_target())]
            case "us_x":
                pairs = [(own(), same_target())]
        return [torch.cat(pair) for pair in pairs]
