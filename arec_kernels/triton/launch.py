"""Launches that skip Triton's own analysis of the arguments once a kernel is compiled.

`kernel[grid](…)` binds and inspects all arguments anew and compares every global a kernel names; four
times a step that takes longer than the kernels of a thousand rows. Here a launch looks at nothing but
what the compiled code depends on.
"""

from __future__ import annotations

from collections.abc import Hashable

import triton
from torch import Tensor
from triton.compiler import CompiledKernel

from arec_kernels.triton.config import INTERPRETED

_compiled: dict[Hashable, CompiledKernel] = {}


def launch(kernel: triton.JITFunction, grid: tuple[int, int], *args: object, **constants: object) -> None:
    """Runs `kernel` on the current device and stream.

    `args` are all its arguments but the `tl.constexpr` ones, which come last in its signature;
    `constants` are those, and `num_warps`, `num_stages` and `maxnreg`.
    """
    if INTERPRETED:
        kernel[grid](*args, **constants)
        return
    device = triton.runtime.driver.active.get_current_device()
    key = (kernel.fn, device, *map(_specialisation, args), *constants.items())
    compiled = _compiled.get(key)
    if compiled is None:
        _compiled[key] = kernel[grid](*args, **constants)
    else:
        # The compiled code has no more use for the values of its constants.
        placeholders = [None] * (len(kernel.arg_names) - len(args))
        compiled[*grid, 1](*args, *placeholders)


def _specialisation(arg: object) -> Hashable:
    """What Triton compiles for: a pointer's type and alignment; integers that are 1, of 16, or long."""
    if isinstance(arg, Tensor):
        return arg.dtype, arg.data_ptr() % 16 == 0
    if isinstance(arg, int):
        return arg == 1, arg % 16 == 0, arg.bit_length() > 31
    return type(arg)
