"""AdaptiveRec: contrast with a similarity threshold, SimThres, and positive sampling."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from arec.config import Config
from arec.models import Encoder, FlattenedThresholdNetwork, ThresholdNetwork
from arec.objectives.contrastive import BINS, ContrastiveObjective
from arec_kernels import adaptive_info_nce, row_similarity_quantile


class AdaptiveRec(ContrastiveObjective):
    """Eq. 5-9: ``L_basic + λ_cl (L_learn + λ L_reg)``.

    Pairs above the threshold k are false negatives: they leave the negatives and, with
    ``positives``, become positives. ``simthres`` says where k comes from:

    - "learnable": a network g gives each sequence of a batch its k (Eq. 7), used for both its views.
      L_reg draws it towards k̄, the ``quantile`` of all candidate similarities of the previous
      epoch, so it is absent in the first. With ``regulariser="paper"``, ``L_reg = ‖k − k̄‖²/(2B)``,
      so that λ weighs it against L_learn's mean over 2B rows as the paper's λ does against the sum;
      with "released" it is ``‖k − s̄‖₂``, and λ L_reg stands outside λ_cl; s̄ is the mean over the
      previous epoch's batches of their own quantiles.
    - "row": the ``quantile`` of each row's own candidate similarities.
    - "epoch": the k̄ or s̄ of the previous epoch, for all rows; in the first epoch nothing is above.

    The last two are statistical. Sec. 3.2.1 takes "the entire set of users", which is nearer to "epoch";
    Sec. 3.2.2 prefers what is local to a batch.
    """

    threshold: ThresholdNetwork | FlattenedThresholdNetwork  # only where it is learnable
    reference: Tensor  # 0-d, k̄ or s̄ of the previous epoch; NaN: there was none
    batch_quantiles: Tensor  # (2,), of this epoch: their sum and the number of batches

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        if config.simthres == "learnable":
            features = encoder.item_table.shape[1]
            if config.threshold_network == "flattened":
                self.threshold = FlattenedThresholdNetwork(features, config.batch_size)
            else:
                context = config.threshold_network == "context"
                self.threshold = ThresholdNetwork(features, context=context)
        self.register_buffer("reference", torch.tensor(torch.nan))
        self.register_buffer("batch_quantiles", torch.zeros(2))

    def thresholds(
        self,
        z: Tensor,  # (2B, d)
        groups: Tensor | None = None,  # (B,)
    ) -> Tensor:  # (B,) for both views, (2B,), or 0-d for all rows
        """SimThres; a learnable one comes from the features of the first views."""
        match self.config.simthres:
            case "learnable":
                return self.threshold(z[: len(z) // 2])
            case "row":
                return row_similarity_quantile(z, self.config.quantile, groups=groups)
            case "epoch":
                return self.reference.nan_to_num(nan=math.inf)

    def contrast(self, z: Tensor, groups: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        k = self.thresholds(z, groups)
        # Eq. 8 is Eq. 9 with all the weight on the partner; so written, the op counts what it masks.
        alpha, weighting = (config.partner_weight, config.weighting) if config.positives else (1, "label")
        learn, stats = adaptive_info_nce(
            z,
            k,
            groups=groups,
            temperature=config.temperature,
            partner_weight=alpha,
            denominator=config.denominator,
            weighting=weighting,
            threshold_grad=config.threshold_grad,
            histogram_bins=BINS,
        )
        self.histogram += stats.histogram
        any_pairs = (stats.histogram.sum() > 0).float()  # a batch of one row has no candidates
        quantile = _histogram_quantile(stats.histogram, config.quantile)
        self.batch_quantiles += torch.stack([any_pairs * quantile, any_pairs])
        weighted = config.lambda_cl * learn
        logged = {
            "L_cl": learn,
            # A statistical threshold may be infinite; the range is that of a learnable one.
            "k_mean": k.clamp(-1.05, 1.05).mean(),
            "k_std": k.clamp(-1.05, 1.05).std(correction=0),
        }
        above = "positives_per_row" if config.positives else "masked_per_row"
        logged[above] = stats.positives.float().mean()
        if config.simthres == "learnable":
            regularised = k if config.regularise_encoder else self.thresholds(z.detach())
            # NaN in the first epoch, when there is nothing to draw k to: no deviation, no gradient.
            deviation = (regularised - self.reference).nan_to_num(nan=0.0)
            if config.regulariser == "paper":
                penalty, weight = deviation.square().sum() / len(z), config.lambda_cl
            else:
                penalty, weight = torch.linalg.vector_norm(deviation), 1.0
            weighted = weighted + weight * config.lambda_reg * penalty
            logged["L_reg"] = penalty
        return weighted, logged

    def end_epoch(self) -> dict[str, Any]:
        """``k_stat``, which becomes the next epoch's k̄ or s̄; absent where there is none."""
        total, batches = self.batch_quantiles
        if batches > 0:
            paper = self.config.regulariser == "paper" or self.config.simthres == "row"
            epoch_quantile = _histogram_quantile(self.histogram, self.config.quantile)
            self.reference.copy_(epoch_quantile if paper else total / batches)
        self.batch_quantiles.zero_()
        logged = {} if self.reference.isnan() else {"k_stat": self.reference.item()}
        return logged | super().end_epoch()


def _histogram_quantile(
    histogram: Tensor,  # (bins,) int64 counts over [-1, 1]
    q: float,
) -> Tensor:  # 0-d
    """Smallest bin edge with a share q of the counts below it."""
    below = histogram.cumsum(0)
    edge = torch.searchsorted(below, (below[-1] * q).long()) + 1
    return edge * (2 / len(histogram)) - 1
