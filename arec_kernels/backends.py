"""Which backend runs: the one that is asked for, or the fastest one for the tensors at hand."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from arec_kernels.registration import BACKENDS, EXTENSION_ERRORS, IMPLEMENTED

# Most rows for which the CUDA C++ kernels were ahead of the Triton kernels, by compute capability and
# type of z, as measured in bench/results/gpu-*.json (D = 64, forward + backward, launches included).
CUDA_AHEAD = {(9, 0): {torch.bfloat16: 8192}}


def check_backend(backend: str | None) -> None:
    if backend not in (None, "reference", *BACKENDS):
        raise ValueError(f"backend: expected None, 'reference' or one of {BACKENDS}, got {backend!r}")


def choose_backend(backend: str | None, z: Tensor) -> str:
    """The backend that runs for `z`.

    `None` is the C++ kernels on a CPU, and on a GPU Triton's or, where they were measured to be ahead,
    CUDA's; the reference where these do not run. Raises `ValueError` for an unknown name and
    `RuntimeError`, with the reason, for a named backend that cannot run on `z` here.
    """
    if z.is_cpu and backend in (None, "cpp") and ("cpp", "cpu") in IMPLEMENTED:
        return "cpp"  # without the tests below: at small N they are a part of the time of a call
    check_backend(backend)
    if backend is None:
        return next(name for name in _fastest_first(z) if not _why_not(name, z))
    reason = _why_not(backend, z)
    if reason:
        raise RuntimeError(f"backend {backend!r} cannot run here: {reason}")
    return backend


def _fastest_first(z: Tensor) -> tuple[str, ...]:
    if not z.is_cuda or not torch.cuda.is_available():
        return ("reference",)
    ahead = z.shape[0] <= CUDA_AHEAD.get(_capability(z), {}).get(z.dtype, 0)
    return ("cuda", "triton", "reference") if ahead else ("triton", "reference")


def _capability(z: Tensor) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(z.device)  # torch.compile takes it for a constant
    return properties.major, properties.minor


def _why_not(backend: str, z: Tensor) -> str:
    """Why `backend` cannot run on `z`; empty where it can."""
    if backend == "reference":
        return ""
    device = z.device.type
    if (backend, device) not in IMPLEMENTED:
        if any(name == backend for name, _ in IMPLEMENTED):
            return f"it does not take tensors on {device}"
        if backend == "triton":
            return "Triton is not installed"
        return f"no compiled extension can be used ({EXTENSION_ERRORS[backend]})"
    if backend == "triton" and device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton takes CPU tensors only under TRITON_INTERPRET=1"
    if backend != "cpp" and z.dtype is torch.float64:
        return "float64 is for the backends 'reference' and 'cpp'"
    if z.is_cuda and _capability(z) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or newer"
    return ""
