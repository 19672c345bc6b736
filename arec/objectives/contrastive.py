"""What the contrastive methods share: a basic loss + λ_cl · a loss on pairs of views."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from arec import parallel
from arec.augment import two_views
from arec.config import Config
from arec.data.batches import Batch
from arec.device import random_numbers_kept
from arec.models import Encoder
from arec.objectives.base import Objective
from arec.objectives.bert4rec import masked_states
from arec.objectives.sasrec import next_item_loss
from arec.objectives.softmax import item_loss
from arec_kernels import adaptive_info_nce, similarity_histogram
from arec_kernels.reference import candidates

# Resolution 1/1000 in cosine units: far finer than the spread of SimThres.
BINS = 2000
# Coarse enough to keep a line of the log short.
_LOGGED_BINS = 200


class ContrastiveObjective(Objective):
    """``L = L_basic + λ_cl · L_cl`` (Eq. 9), L_cl summed over the view pairs.

    L_cl is NT-Xent (Eq. 2), in which every other row of the batch is a negative, unless a method
    says otherwise. The similarities of an epoch are counted in the same pass.
    """

    histogram: Tensor  # (BINS,) int64, over [-1, 1]

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.register_buffer("histogram", torch.zeros(BINS, dtype=torch.int64))

    def contrast(
        self,
        z: Tensor,  # (2B, d) rows i and i + B are two views of one sequence
        groups: Tensor | None,  # (B,) rows of the same group are no negatives
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What one view pair adds to the loss (0-d, λ_cl applied) and scalars to log.

        Of several pairs those named ``L_…`` are summed, as the loss is, and the others averaged. A method
        that overrides it counts the similarities here too, for the log: `similarity_histogram(z, BINS)` or
        the op's own into `histogram`.
        """
        temperature = self.config.temperature
        if self.config.similarity == "dot":
            loss = dot_nt_xent(z, temperature, groups)
            # A NaN is the loss's to report.
            self.histogram += similarity_histogram(z.detach().nan_to_num(), BINS, groups=groups)
        else:
            loss, stats = adaptive_info_nce(
                z,
                math.inf,
                temperature=temperature,
                groups=groups,
                positives=False,
                histogram_bins=BINS,
            )
            self.histogram += stats.histogram
        return self.config.lambda_cl * loss, {"L_cl": loss}

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        sampled = self.config.sampled_negatives
        if self.encoder.causal:
            loss, anchor = next_item_loss(self.encoder, batch, sampled)
        else:
            states, items = masked_states(self.encoder, batch, self.config)
            loss, anchor = item_loss(states, self.encoder.item_table, items, sampled), None
        logged = {"L_basic": loss.detach()}
        if not self.config.contrastive:
            return loss, logged
        pairs = self.view_pairs(batch, anchor)
        groups = self.groups(batch)
        if groups is not None:
            groups = parallel.gather_rows(groups)
        for z in pairs:
            # bfloat16 would round SimThres to steps of 0.004.
            with torch.autocast(z.device.type, enabled=False):
                weighted, scalars = self.contrast(parallel.gather_views(z.float()), groups)
            loss = loss + weighted
            for name, value in scalars.items():
                share = 1 if name.startswith("L_") else 1 / len(pairs)  # losses add up
                logged[name] = logged.get(name, 0) + share * value.detach()
        return loss, logged

    @contextmanager
    def same_chance(self, *, training: bool = True) -> Iterator[None]:
        """Within it chance is drawn from the run's seed; torch's generators and the mode stay as they were.

        Views differ by dropout and augmentation; what is measured on them is to be the same at every
        call, and not to change the training.

        Args:
            training: with dropout.
        """
        mode = self.training
        with random_numbers_kept(self.device):
            torch.manual_seed(self.config.seed)
            self.train(training)
            try:
                yield
            finally:
                self.train(mode)

    def end_epoch(self) -> dict[str, Any]:
        """``similarity_histogram``: counts of the epoch's similarities over [-1, 1]."""
        counts = self.histogram.unflatten(0, (_LOGGED_BINS, -1)).sum(dim=1).tolist()
        self.histogram.zero_()
        return {"similarity_histogram": counts} if any(counts) else {}

    def groups(self, batch: Batch) -> Tensor | None:  # (B,)
        """Rows of the same group are known to be no negatives of each other."""
        return None if self.config.same_target_negatives else batch.anchor_targets

    def view_pairs(
        self,
        batch: Batch,
        anchor: Tensor | None = None,  # (B, d) the anchors' features if the caller has them
    ) -> list[Tensor]:  # (2B, d) each
        """Features of the views, two by two: what is contrasted, and what is measured of views.

        For a sequence with features h the pairs of DuoRec (Qiu et al., 2022) are "un" (h, h′), h′ a
        second dropout pass; "su" (h, h_sem), h_sem another user's sequence with the same target;
        "us" both pairs; "us_x" (h′, h_sem). "cl4srec" takes two of crop, mask and reorder.
        """

        def own() -> Tensor:
            return self.features(batch.anchor_inputs, batch.anchor_lengths)

        def same_target() -> Tensor:
            return self.features(batch.partner_inputs, batch.partner_lengths)

        views = self.config.views
        if anchor is None and views in ("un", "su", "us"):
            anchor = own()
        match views:
            case "un":
                pairs = [(anchor, own())]
            case "su":
                pairs = [(anchor, same_target())]
            case "us":
                pairs = [(anchor, own()), (anchor, same_target())]
            case "us_x":
                pairs = [(own(), same_target())]
            case "cl4srec":
                augmented = two_views(
                    batch.anchor_inputs,
                    batch.anchor_lengths,
                    crop_ratio=self.config.crop_ratio,
                    mask_ratio=self.config.mask_ratio,
                    reorder_ratio=self.config.reorder_ratio,
                    mask_token=self.encoder.mask_token,
                )
                pairs = [tuple(self.features(*view) for view in augmented)]
        return [torch.cat(pair) for pair in pairs]


def dot_nt_xent(
    z: Tensor,  # (2B, d)
    temperature: float,
    groups: Tensor | None,  # (B,)
) -> Tensor:  # 0-d
    """NT-Xent on dot products in plain PyTorch, O(N²) memory: the op knows cosines only."""
    rows = torch.arange(len(z), device=z.device)
    partner = rows.roll(len(z) // 2)
    kept = candidates(z, None if groups is None else groups.repeat(2))
    kept[rows, partner] = True
    logits = (z @ z.T / temperature).masked_fill(~kept, -math.inf)
    return F.cross_entropy(logits, partner)
