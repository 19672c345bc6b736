"""Kernels that show one step of those of the package."""

from __future__ import annotations

import triton
import triton.language as tl

from arec_kernels.triton.tile import nearest_tf32


@triton.jit
def nearest_tf32_kernel(x_ptr, BLOCK: tl.constexpr):
    at = x_ptr + tl.arange(0, BLOCK)
    tl.store(at, nearest_tf32(tl.load(at)))
