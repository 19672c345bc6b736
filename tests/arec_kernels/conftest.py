"""Fixtures that name every backend of this machine."""

from __future__ import annotations

import pytest
from available import COMPILED, EMULATED, ready


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
