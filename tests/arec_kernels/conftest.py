"""Fixtures that name every backend of this machine."""

from __future__ import annotations

import cuda_emulation
import pytest
from available import COMPILED, CUDA_ON_CARD, EMULATED


def ready(backend: str) -> str:
    """The backend, loaded if it is emulated."""
    if backend == "cuda" and not CUDA_ON_CARD:
        cuda_emulation.load()
    return backend


@pytest.fixture(params=COMPILED)
def compiled(request: pytest.FixtureRequest) -> str:
    """Every backend but the reference."""
    return ready(request.param)


@pytest.fixture(params=["reference", *COMPILED])
def backend(request: pytest.FixtureRequest) -> str:
    return ready(request.param)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Where the test's backend runs."""
    name = "compiled" if "compiled" in request.fixturenames else "backend"
    backend = request.getfixturevalue(name)
    return "cuda" if backend in ("triton", "cuda") and backend not in EMULATED else "cpu"
