"""What the kernels are measured against: the same loss by other means, and other people's NT-Xent."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from arec_kernels import adaptive_info_nce, reference

TEMPERATURE = 0.1


class Rival(NamedTuple):
    loss: Callable[[Tensor, Tensor], Tensor]  # z (N, D), threshold (N,) -> 0-d
    bytes: Callable[[int, int], int]  # a lower bound of the memory at (N, D), forward + backward
    mode: str  # "adaptive": thresholds a row, the default mode; "ntxent": plain NT-Xent on cosines
    package: str  # what has to be installed


def _ours(z: Tensor, k: Tensor) -> Tensor:
    return adaptive_info_nce(z, k, temperature=TEMPERATURE, backend="cpp")


def _eager(z: Tensor, k: Tensor) -> Tensor:
    return reference.adaptive_info_nce(z, k, temperature=TEMPERATURE)


_compiled = torch.compile(_eager, dynamic=False)


def lean(z: Tensor, k: Tensor) -> Tensor:
    """The op in its default mode and nothing else, with fewer passes over matrices; products in z's type."""
    half = len(z) // 2
    unit = normalize(z.float()).to(z.dtype)
    s = (unit @ unit.T).float()
    with torch.no_grad():
        above = s > k[:, None]
        for offset in (0, half, -half):
            above.diagonal(offset).fill_(False)
        m = above.sum(dim=1)
        outside = above.clone().fill_diagonal_(True)
    partner = torch.cat([s.diagonal(half), s.diagonal(-half)])
    exponentials = ((s - 1) / TEMPERATURE).exp().masked_fill(outside, 0)
    log_d = exponentials.sum(dim=1).log() + 1 / TEMPERATURE
    mean = (s * above).sum(dim=1) / m.clamp_min(1)
    target = torch.where(m > 0, 0.5 * (partner + mean), partner)
    return (log_d - target / TEMPERATURE).mean()


lean_compiled = torch.compile(lean, dynamic=False)


def ours_ntxent(z: Tensor, k: Tensor, backend: str = "cpp") -> Tensor:
    return adaptive_info_nce(
        z, float("inf"), temperature=TEMPERATURE, positives=False, backend=backend
    )


def metric_learning(z: Tensor, k: Tensor) -> Tensor:
    from pytorch_metric_learning.losses import NTXentLoss

    labels = torch.arange(len(z) // 2, device=z.device).repeat(2)
    return NTXentLoss(temperature=TEMPERATURE)(z, labels)


def _lightly(z: Tensor, k: Tensor) -> Tensor:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=TEMPERATURE)(*z.chunk(2))


def _linear(n: int, d: int) -> int:
    return 8 * 4 * n * d


def _square(n: int, d: int) -> int:
    return 6 * 4 * n * n


def _cube(n: int, d: int) -> int:
    return 12 * n**3  # every positive pair against every negative one


RIVALS = {
    "ours": Rival(_ours, _linear, "adaptive", "torch"),
    "eager": Rival(_eager, _square, "adaptive", "torch"),
    "torch.compile": Rival(_compiled, _square, "adaptive", "torch"),
    "eager, lean": Rival(lean, _square, "adaptive", "torch"),
    "torch.compile, lean": Rival(lean_compiled, _square, "adaptive", "torch"),
    "ours (NT-Xent)": Rival(ours_ntxent, _linear, "ntxent", "torch"),
    "pytorch-metric-learning": Rival(
        metric_learning, _cube, "ntxent", "pytorch-metric-learning"
    ),
    "lightly": Rival(_lightly, _square, "ntxent", "lightly"),
}


def why_absent(rival: Rival) -> str:
    """Why the rival cannot run here; empty where it can: a package may be there and not import."""
    try:
        importlib.metadata.version(rival.package)
        rival.loss(torch.randn(4, 2), torch.zeros(4))
    except importlib.metadata.PackageNotFoundError:
        return f"{rival.package} is not installed"
    except (ImportError, RuntimeError) as error:  # the second: a torchvision for another PyTorch
        return f"{rival.package} does not import: {error}"
    return ""
