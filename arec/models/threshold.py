"""The threshold network g (Sec. 3.2.2, Eq. 7): sequence features in, SimThres out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# k = 0.95 (the released program's starts near 0). Thresholds start near the top: what a fresh encoder finds similar
# says nothing, and taking it for positives makes features collapse.
_FIRST_BIAS = 3.0
_HIDDEN = 64


def _threshold(x: Tensor) -> Tensor:
    """``2.1 (σ(x) − 0.5)``, as released: slightly past [−1, 1], so that "everything is negative"
    and "everything is positive" are both within reach."""
    return 2.1 * (torch.sigmoid(x) - 0.5)


class ThresholdNetwork(nn.Module):
    """Learnable SimThres ``k = g({f(s_i)})``, one threshold a row, in cosine units.

    Every row goes through the same two-layer MLP together with the mean direction of its batch, so
    that a threshold depends on the row and on the composition of its batch at any batch size.

    Args:
        context: False leaves the batch's mean direction out: a threshold depends on its row alone.
    """

    def __init__(self, features: int, *, context: bool = True) -> None:
        super().__init__()
        self.context = context
        self.layers = nn.Sequential(
            nn.Linear(features * (1 + context), _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, 1)
        )
        nn.init.constant_(self.layers[-1].bias, _FIRST_BIAS)

    def forward(self, features: Tensor) -> Tensor:  # (B, D) -> (B,)
        x = F.normalize(features, dim=-1)
        if self.context:
            x = torch.cat([x, x.mean(dim=0, keepdim=True).expand_as(x)], dim=-1)
        return _threshold(self.layers(x).squeeze(-1))


class FlattenedThresholdNetwork(nn.Module):
    """g of the released program: two linear layers from the batch as one vector to B thresholds.

    Only their start is another: here it is k = 0.95, there a last bias of 0 and weights of deviation 0.02.
    Its weights, about ``8·B²·D`` of them, are tied to one batch size and to the order of the rows.
    A smaller batch, the last of an epoch, is filled up with zeros, whose thresholds are dropped.
    """

    def __init__(self, features: int, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.layers = nn.Sequential(
            nn.Linear(batch_size * features, 8 * batch_size), nn.Linear(8 * batch_size, batch_size)
        )
        nn.init.constant_(self.layers[-1].bias, _FIRST_BIAS)

    def forward(self, features: Tensor) -> Tensor:  # (B, D) -> (B,)
        """Raises ValueError when there are more rows than the batch size it was built for."""
        rows = len(features)
        if rows > self.batch_size:
            raise ValueError(
                f"features: expected at most {self.batch_size} rows, the batch size that this "
                f"network was built for, got {rows}"
            )
        x = F.pad(features, (0, 0, 0, self.batch_size - rows)).flatten()
        return _threshold(self.layers(x)[:rows])
