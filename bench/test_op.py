"""Every backend of this machine against the PyTorch reference, at one small size."""

from __future__ import annotations

import pytest
import torch
from timing import call, measure, problem

from arec_kernels import adaptive_info_nce, alignment_uniformity, row_similarity_quantile
from arec_kernels.registration import IMPLEMENTED

N, D = 512, 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton runs on the CPU as well, interpreted: nothing to measure.
BACKENDS = ["reference"] + sorted(
    backend for backend, device in IMPLEMENTED
    if device == DEVICE and (backend, device) != ("triton", "cpu")
)


def finished(function):
    """`function`, and what it started on the device."""
    if DEVICE == "cpu":
        return function

    def run() -> None:
        function()
        torch.cuda.synchronize()

    return run


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    z, k = problem(N, D, dtype)
    return z.detach().to(DEVICE).requires_grad_(), k.to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_adaptive_info_nce(benchmark, backend: str, backward: bool, dtype: torch.dtype) -> None:
    benchmark.group = f"{'forward+backward' if backward else 'forward'} {dtype} N={N} D={D}"
    z, k = inputs(dtype)

    def loss(z: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return adaptive_info_nce(z, k, temperature=0.1, backend=backend)

    measure(benchmark, finished(call(loss, z, k, backward)))


def test_row_similarity_quantile(benchmark, backend: str) -> None:
    benchmark.group = f"row_similarity_quantile N={N} D={D}"
    z, _ = inputs()
    measure(benchmark, finished(lambda: row_similarity_quantile(z.detach(), 0.9, backend=backend)))


def test_alignment_uniformity(benchmark, backend: str) -> None:
    benchmark.group = f"alignment_uniformity N={N} D={D}"
    x, y = inputs()[0].detach().chunk(2)
    measure(benchmark, finished(lambda: alignment_uniformity(x, y, backend=backend)))
