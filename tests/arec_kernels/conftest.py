"""Fixtures that name every backend of this machine."""

from __future__ import annotations

import pytest
from available import COMPILED, INTERPRETED


@pytest.fixture(params=COMPILED)
def compiled(request: pytest.FixtureRequest) -> str:
    """Every backend but the reference."""
    return request.param


@pytest.fixture(params=["reference", *COMPILED])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Where the test's backend runs."""
    backend = "compiled" if "compiled" in request.fixturenames else "backend"
    on_gpu = request.getfixturevalue(backend) == "triton" and not INTERPRETED
    return "cuda" if on_gpu else "cpu"
