"""The backends that can be tested on this machine."""

from __future__ import annotations

import os
from importlib.util import find_spec

import cuda_emulation
import pytest
import torch

from arec_kernels.registration import EXTENSION_ERRORS, IMPLEMENTED

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

needs_cpp = pytest.mark.skipif(
    ("cpp", "cpu") not in IMPLEMENTED,
    reason=f"no compiled extension: {EXTENSION_ERRORS.get('cpp')}",
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_triton = pytest.mark.skipif(
    not (find_spec("triton") and (INTERPRETED or torch.cuda.is_available())),
    reason="needs Triton, and TRITON_INTERPRET=1 or a GPU",
)
# The CUDA kernels run on a card where there is one and they were built for it, else emulated.
CUDA_ON_CARD = ("cuda", "cuda") in IMPLEMENTED and torch.cuda.is_available()
needs_cuda = pytest.mark.skipif(
    not CUDA_ON_CARD and not cuda_emulation.available(),
    reason="needs gcc 12 or newer, or a GPU and the CUDA extension",
)
COMPILED = [
    pytest.param("cpp", marks=needs_cpp),
    pytest.param("triton", marks=needs_triton),
    pytest.param("cuda", marks=needs_cuda),
]
# Emulated backends, and the most rows that take them seconds at most.
EMULATED = {"triton": 40} if INTERPRETED else {}
if not CUDA_ON_CARD:
    EMULATED["cuda"] = 300


def ready(backend: str) -> str:
    """The backend, loaded if it is emulated."""
    if backend == "cuda" and not CUDA_ON_CARD:
        cuda_emulation.load()
    return backend
