"""What benchmarks measure beside time: the limit of the machine, and the memory of a call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from peak_memory import Server


@pytest.fixture(scope="session")
def peak_flops() -> float:
    """FLOP/s of float32 multiply-adds on all of torch's threads, from registers."""
    op = getattr(torch.ops.arec_kernels, "cpu_peak_flops", None)
    if op is None:
        pytest.skip("no compiled extension")
    return max(op(0.1) for _ in range(10))


@pytest.fixture(scope="session")
def memory() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()
