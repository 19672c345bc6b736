"""What every benchmark times: inputs, a pass over them, and calls of it for a bounded time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from torch import Tensor

SECONDS = 0.4  # of measuring for each benchmark, once a call is not longer than that


def problem(n: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Rows (n, d) whose partners differ by noise, and (n,) thresholds that keep about a tenth."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, d, generator=generator)
    z[n // 2 :] = z[: n // 2] + 0.5 * z[n // 2 :]
    k = (1.28 + 0.1 * torch.randn(n, generator=generator)) / d**0.5
    return z.to(dtype).requires_grad_(), k


def call(
    loss: Callable[[Tensor, Tensor], Tensor], z: Tensor, k: Tensor, backward: bool
) -> Callable:
    """One forward, or forward and backward, pass as a function of nothing."""

    def forward_only() -> Tensor:
        with torch.no_grad():
            return loss(z, k)

    def both() -> Tensor:
        z.grad = None
        out = loss(z, k)
        out.backward()
        return out

    return both if backward else forward_only


def measure(benchmark, function: Callable) -> None:
    """At least two rounds, and as many as fit in `SECONDS`."""
    function()  # compiles, allocates
    start = time.perf_counter()
    function()
    rounds = int(SECONDS / (time.perf_counter() - start))
    benchmark.pedantic(function, rounds=min(max(rounds, 2), 2000), iterations=1)


def total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
