"""The threshold network g (Sec. 3.2.2, Eq. 7): sequence features in, SimThres out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ThresholdNetwork(nn.Module):
    """Learnable SimThres ``k = g({f(s_i)})``, one threshold a row, in cosine units.

    The paper's g is an MLP from the whole batch to B thresholds; its released program flattens
    the batch, which ties the weights to one batch size and costs (B·D)² parameters. Here every
    row goes through the same two-layer MLP together with the mean direction of its batch, so that
    a threshold depends on the row and on the composition of its batch at any batch size.

    The output is ``2.1 (σ(x) − 0.5)``, as released: slightly past [−1, 1], so that "everything is
    negative" and "everything is positive" are both within reach. It starts near the top: what a
    fresh encoder finds similar says nothing, and taking it for positives makes features collapse.
    """

    def __init__(self, features: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * features, hidden), nn.GELU(), nn.Linear(hidden, 1)
        )
        nn.init.constant_(self.layers[-1].bias, 3.0)  # k = 0.95

    def forward(self, features: Tensor) -> Tensor:  # (B, D) -> (B,)
        directions = F.normalize(features, dim=-1)
        context = directions.mean(dim=0, keepdim=True).expand_as(directions)
        x = self.layers(torch.cat([directions, context], dim=-1)).squeeze(-1)
        return 2.1 * (torch.sigmoid(x) - 0.5)
