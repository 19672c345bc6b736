"""The backends that can be tested on this machine."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

from arec_kernels.registration import EXTENSION_ERROR, IMPLEMENTED

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

needs_cpp = pytest.mark.skipif(
    ("cpp", "cpu") not in IMPLEMENTED, reason=f"no compiled extension: {EXTENSION_ERROR}"
)
needs_triton = pytest.mark.skipif(
    not (find_spec("triton") and (INTERPRETED or torch.cuda.is_available())),
    reason="needs Triton, and TRITON_INTERPRET=1 or a GPU",
)
COMPILED = [
    pytest.param("cpp", marks=needs_cpp),
    pytest.param("triton", marks=needs_triton),
]


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
