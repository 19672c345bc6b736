"""Dropout at the speed of a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_BITS = 16  # of randomness an element


class Dropout(nn.Dropout):
    """As :class:`torch.nn.Dropout`, but several times faster on a CPU.

    PyTorch draws there a random number and takes a branch for every element. Here a draw of 64 bits
    serves four, which rounds ``p`` to 1/65536.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p or x.device.type != "cpu":
            return super().forward(x)
        draws = torch.empty(-(-x.numel() * _BITS // 64), dtype=torch.int64)
        bits = draws.random_(-(2**63), None).view(torch.int16)[: x.numel()].view(x.shape)
        dropped = min(round(self.p * 2**_BITS), 2**_BITS - 1)
        kept = bits >= dropped - 2 ** (_BITS - 1)
        return x * kept.to(x.dtype).mul_(2**_BITS / (2**_BITS - dropped))
