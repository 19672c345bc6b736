"""How far a backend may be from the float64 oracle, and problems on which that can be asked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from arec_kernels import InfoNCEStats, adaptive_info_nce, reference

OPTIONS = [
    {"positives": positives, "denominator": denominator, "weighting": weighting}
    for positives, denominator, weighting in itertools.product(
        (True, False), ("negatives", "all"), ("label", "label-unnormalised", "printed")
    )
]

# The one that CUDA computes with; math.nan has low bits of 0.
NAN_OF_A_GPU = np.uint32(0x7FFFFFFF).view(np.float32).item()

# Thresholds keep further from every similarity than rounding can move it.
MARGINS = {
    torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2,
}


class Result(NamedTuple):
    loss: Tensor  # (N,) float64
    grad_z: Tensor  # (N, D) float64
    grad_threshold: Tensor  # (N,) float64, zero without threshold_grad
    stats: InfoNCEStats | None


def make_rows(
    n: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0, device: str = "cpu"
) -> Tensor:  # (n, d)
    """Partners that differ by noise, of lengths between about 1/30 and 30."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=generator)
    z[n // 2 :] = z[: n // 2] + 0.5 * z[n // 2 :]
    return (z * torch.exp(torch.randn(n, 1, generator=generator))).to(device, dtype)


def make_groups(n: int, device: str = "cpu") -> Tensor:  # (n,)
    """A fifth of the rows in no group (-1 and -2), the others in groups over both views."""
    groups = torch.arange(n, device=device) * 7 % (n // 3 + 2)
    groups[::5] = -1
    groups[1::10] = -2
    return groups


def clear_thresholds(z: Tensor, groups: Tensor | None = None, seed: int = 0) -> Tensor:
    """(N,) thresholds, each in a random gap of the row's similarities that rounding cannot cross.

    Below all and above all (infinity) are gaps as well.
    """
    s = reference.cosine_similarities(z.double())
    s = s.masked_fill(~reference.candidates(z, groups), math.inf).sort(dim=1).values
    below = torch.cat((torch.full_like(s[:, :1], -2.0), s), dim=1)
    above = torch.cat((s, torch.full_like(s[:, :1], math.inf)), dim=1)
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(below.shape, generator=generator).to(z.device)
    order = order.masked_fill(~(above - below > 2 * MARGINS[z.dtype]), -1.0)
    at = order.argmax(dim=1, keepdim=True)
    k = (below.gather(1, at) + above.gather(1, at)) / 2
    return k.squeeze(1).to(torch.float64 if z.dtype is torch.float64 else torch.float32)


def upstream_gradients(n: int) -> Tensor:
    """(n,) a different one for each row; the same numbers in float64, also where they are nearly 0."""
    return torch.linspace(-1, 2, n, dtype=torch.float32)


def run(op, z: Tensor, k: Tensor, dtype: torch.dtype, **options) -> Result:
    """The op on z as `dtype`, differentiated with a different upstream gradient for each row."""
    z, k = z.detach().to(dtype).requires_grad_(), k.detach().requires_grad_()
    loss = op(z, k, reduction="none", **options)
    loss, stats = loss if isinstance(loss, tuple) else (loss, None)
    loss.backward(upstream_gradients(len(loss)).to(loss))
    grad_k = torch.zeros_like(k) if k.grad is None else k.grad
    assert z.grad.dtype is dtype
    return Result(loss.detach().double(), z.grad.double(), grad_k.double(), stats)


def unprojected_gradient(z: Tensor, k: Tensor, **options) -> Tensor:
    """(N, D): the gradient of the unit rows over the rows' norms, before anything cancels."""
    z = z.double()
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    with mock.patch.object(reference, "cosine_similarities", lambda unit: unit @ unit.T):
        grad = run(
            reference.adaptive_info_nce, reference.unit_rows(z), k, torch.float64, **options
        ).grad_z
    return torch.where(norm < reference.ZERO_NORM, 0.0, grad / norm)


def cosines_of_rounded_rows(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """`reference.cosine_similarities` that rounds unit rows to `dtype` and nothing else."""

    def cosines(z: Tensor) -> Tensor:
        unit = reference.unit_rows(z)
        unit = unit + (unit.float().to(dtype) - unit).detach()
        return unit @ unit.T

    return cosines


def assert_correct(z: Tensor, k: Tensor, backend: str, **options) -> Result:
    """The backend is near the float64 oracle, or at most twice as far as PyTorch in z's type.

    Near is 1e-6 / temperature for the loss (relative above 1; for each of its terms, where it is
    their sum) and 1e-5 / temperature of its own norm for a gradient: s / temperature carries the
    rounding of s, magnified. In half precision the weights of the pairs are rounded before they
    multiply the unit rows, which then cancel in part: for the gradient of z it is eps of the norm
    before, twice its own at most. And the oracle has the rounded unit rows: among few numbers
    PyTorch's roundings can cancel, and then its error is no bound for the unit rows' alone.
    """
    oracle = reference.adaptive_info_nce
    temperature = options.get("temperature", 1.0)
    width = min(temperature, options.get("threshold_grad") or math.inf)
    result = run(adaptive_info_nce, z, k, z.dtype, backend=backend, **options)
    exact = run(oracle, z, k, torch.float64, **{"histogram_bins": 1} | options)
    rounded = run(oracle, z, k, z.dtype, **options)

    half = z.dtype in (torch.bfloat16, torch.float16)
    same_rows = exact
    if half:
        with mock.patch.object(reference, "cosine_similarities", cosines_of_rounded_rows(z.dtype)):
            same_rows = run(oracle, z, k, torch.float64, **options)

    terms = 1 + exact.stats.positives if options.get("weighting") == "printed" else 1
    near = 1e-6 / temperature * exact.loss.abs().clamp_min(terms)
    if half:
        near = torch.maximum(near, 2 * (rounded.loss - exact.loss).abs().max())
    error = (result.loss - same_rows.loss).abs()
    assert (error <= near).all(), f"loss: {(error / near).max():.3g} times the bound"

    unprojected = unprojected_gradient(z, k, **options).norm().item()
    scale = max(exact.grad_z.norm().item(), 1e-6 * unprojected)
    near = 1e-5 / temperature * scale
    if half:
        near = torch.finfo(z.dtype).eps * min(unprojected, 2 * scale)
    _assert_near("grad_z", result, same_rows, rounded, near)
    if options.get("threshold_grad"):
        scale = exact.grad_threshold.norm().item()
        _assert_near("grad_threshold", result, exact, rounded, 1e-5 / width * scale)
    if result.stats is not None:
        assert torch.equal(result.stats.positives, exact.stats.positives)
        assert_same_histogram(result.stats.histogram, z, options.get("groups"))
    return result


def _assert_near(
    name: str, result: Result, exact: Result, rounded: Result, near: float
) -> None:
    # 1e-30: float32's smallest exponentials, where a low temperature leaves nothing of a gradient.
    error = (getattr(result, name) - getattr(exact, name)).norm().item()
    bound = max(near, 2 * (getattr(rounded, name) - getattr(exact, name)).norm().item(), 1e-30)
    assert error <= bound, f"{name}: error {error:.3g}, bound {bound:.3g}"


def assert_same_histogram(histogram: Tensor, z: Tensor, groups: Tensor | None) -> None:
    """Every count up to an edge is one that similarities moved by rounding could give."""
    bins = len(histogram)
    s = reference.cosine_similarities(z.double())[reference.candidates(z, groups)]
    edges = torch.arange(1, bins, device=z.device) * 2 / bins - 1
    counts = histogram.cumsum(0)
    ordered = s.sort().values
    margin = MARGINS[z.dtype]
    assert histogram.dtype is torch.int64
    assert counts[-1] == s.numel()
    assert (counts[:-1] >= torch.searchsorted(ordered, edges.double() - margin)).all()
    assert (counts[:-1] <= torch.searchsorted(ordered, edges.double() + margin)).all()
