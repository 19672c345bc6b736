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
