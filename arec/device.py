"""Where a run computes, and in which numbers."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from arec import parallel
from arec.errors import RunError


def pick_device(name: str) -> torch.device:
    """``auto`` is a GPU where there is one: the first, or that of this process.

    Raises:
        RunError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise RunError(f"device: expected auto, cpu or cuda, got {name!r}")
    if name.startswith("cuda") and parallel.count() > 1:
        if name != "cuda":
            raise RunError(f"device: expected auto, cpu or cuda with several processes, got {name!r}")
        name = f"cuda:{parallel.local_rank()}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"device: {name!r} cannot be used here: {reason}") from None
    return device


def random_numbers_kept(device: torch.device) -> AbstractContextManager[None]:
    """PyTorch's random numbers, on a CPU and the device, go on after it as if it had drawn none."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def pick_precision(name: str, device: torch.device) -> str:
    """``auto`` is bfloat16 where the device has instructions for it, else float32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Only oneDNN uses the instructions. PyTorch knows of them from 2.11 on; the last is ARM's.
        has = getattr(torch.cpu, "get_capabilities", dict)()
        found = any(has.get(feature) for feature in ("avx512_bf16", "amx_bf16", "bf16"))
        fast = found and torch.backends.mkldnn.is_available()
    return "bfloat16" if fast else "float32"
