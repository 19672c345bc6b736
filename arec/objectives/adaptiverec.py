"""AdaptiveRec: SimThres, learned and statistically regularised, with positive sampling."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from arec.models import Encoder, ThresholdNetwork
from arec.objectives.contrastive import ContrastiveObjective, Views
from arec_kernels import adaptive_info_nce

# Resolution 1/1000 in cosine units: far finer than the spread of SimThres.
_BINS = 2000
# The released program's weight of its regulariser, which stands outside λ_cl.
_RELEASED_WEIGHT = 0.1


class AdaptiveRec(ContrastiveObjective):
    """Eq. 5-9: ``L_basic + λ_cl (L_learn + λ L_reg)``.

    A network g gives each sequence of a batch its threshold k (Eq. 7), used for both its views;
    pairs above it are false negatives: they leave the negatives and, with ``positives``, become
    positives. L_reg draws k towards k̄, the ``quantile`` of all candidate similarities of the
    previous epoch, so it is absent in the first. The similarities are counted by the op itself.

    Args:
        regulariser: "paper": ``L_reg = ‖k − k̄‖²/(2B)``, so that λ weighs it against L_learn's mean
            over 2B rows as the paper's λ does against the sum. "released": ``0.1·‖k − s̄‖₂`` outside
            λ_cl, s̄ the mean over the previous epoch's batches of their own quantiles.
        regularise_encoder: L_reg's gradient passes through g into the encoder.
        threshold_grad: width of the straight-through gradient of L_learn to k; None: L_reg alone
            trains g.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        views: Views = "us_x",
        lambda_cl: float = 0.1,
        temperature: float = 1.0,
        same_target_negatives: bool = True,
        positives: bool = True,
        partner_weight: float = 0.5,
        denominator: Literal["negatives", "all"] = "negatives",
        weighting: Literal["label", "label-unnormalised", "printed"] = "label",
        threshold_grad: float | None = None,
        quantile: float = 0.9,
        regulariser: Literal["paper", "released"] = "paper",
        lambda_reg: float = 0.1,
        regularise_encoder: bool = True,
    ) -> None:
        super().__init__(
            encoder, views=views, lambda_cl=lambda_cl, same_target_negatives=same_target_negatives
        )
        self.loss_options = {
            "temperature": temperature,
            "positives": positives,
            "partner_weight": partner_weight,
            "denominator": denominator,
            "weighting": weighting,
            "threshold_grad": threshold_grad,
        }
        self.quantile = quantile
        self.regulariser = regulariser
        self.lambda_reg = lambda_reg
        self.regularise_encoder = regularise_encoder
        self.threshold = ThresholdNetwork(encoder.items.embedding_dim)
        # k̄ or s̄ of the previous epoch (NaN: there was none) and what this epoch has counted so far.
        self.register_buffer("reference", torch.tensor(torch.nan))
        self.register_buffer("histogram", torch.zeros(_BINS, dtype=torch.int64))
        self.register_buffer("batch_quantiles", torch.zeros(2))  # sum, number of batches

    def thresholds(self, z: Tensor) -> Tensor:  # (2B, d) -> (B,)
        """SimThres of each sequence, from the features of its first view."""
        return self.threshold(z[: len(z) // 2])

    def contrast(self, z: Tensor, groups: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        k = self.thresholds(z)
        learn, stats = adaptive_info_nce(
            z, k, groups=groups, histogram_bins=_BINS, **self.loss_options
        )
        self.histogram += stats.histogram
        self.batch_quantiles += torch.stack(
            [_histogram_quantile(stats.histogram, self.quantile), k.new_ones(())]
        )
        regularised = k if self.regularise_encoder else self.thresholds(z.detach())
        # NaN in the first epoch, when there is nothing to draw k to: no deviation, no gradient.
        deviation = (regularised - self.reference).nan_to_num(nan=0.0)
        if self.regulariser == "paper":
            penalty = deviation.square().sum() / len(z)
            weighted = self.lambda_cl * (learn + self.lambda_reg * penalty)
        else:
            penalty = torch.linalg.vector_norm(deviation)
            weighted = self.lambda_cl * learn + _RELEASED_WEIGHT * penalty
        return weighted, {
            "L_cl": learn,
            "L_reg": penalty,
            "N": k.new_tensor(float(len(z))),
            "positives_per_row": stats.positives.float().mean(),
            "k_mean": k.mean(),
            "k_std": k.std(correction=0),
        }

    def end_epoch(self) -> dict[str, float]:
        """The epoch's quantile becomes the next one's k̄."""
        total, batches = self.batch_quantiles
        if batches > 0:
            epoch_quantile = _histogram_quantile(self.histogram, self.quantile)
            self.reference.copy_(epoch_quantile if self.regulariser == "paper" else total / batches)
        self.histogram.zero_()
        self.batch_quantiles.zero_()
        return {"k_stat": self.reference.item()}


def _histogram_quantile(
    histogram: Tensor,  # (bins,) int64 counts over [-1, 1]
    q: float,
) -> Tensor:  # 0-d
    """Smallest bin edge with a share q of the counts below it."""
    below = histogram.cumsum(0)
    edge = torch.searchsorted(below, (below[-1] * q).long()) + 1
    return edge * (2 / len(histogram)) - 1
