"""DuoRec (Qiu et al., 2022): NT-Xent between dropout and same-target views."""

from __future__ import annotations

import math

from torch import Tensor

from arec.models import Encoder
from arec.objectives.contrastive import ContrastiveObjective, Views
from arec_kernels import adaptive_info_nce


class DuoRec(ContrastiveObjective):
    """Every other row of the batch is a negative (Eq. 2)."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        views: Views = "us_x",
        lambda_cl: float = 0.1,
        temperature: float = 1.0,
        same_target_negatives: bool = True,
    ) -> None:
        super().__init__(
            encoder, views=views, lambda_cl=lambda_cl, same_target_negatives=same_target_negatives
        )
        self.temperature = temperature

    def contrast(self, z: Tensor, groups: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        loss = adaptive_info_nce(
            z, math.inf, temperature=self.temperature, groups=groups, positives=False
        )
        return self.lambda_cl * loss, {"L_cl": loss}
