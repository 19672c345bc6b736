"""Argument checks, and the expansion of thresholds and groups to one value a row.

Every op and every backend goes through these, so that bad input gives the same `ValueError`, naming
the argument and what was expected, whichever backend would have run.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
DENOMINATORS = ("negatives", "all")
WEIGHTINGS = ("label", "label-unnormalised", "printed")
REDUCTIONS = ("mean", "sum", "none")
MOST_BINS = 1 << 22  # finer ones would be lost in the rounding of a float32 similarity
MOST = 1e20  # of temperatures and widths, and of 1 over them: float32 holds what follows from those
RANGE = f"from {1 / MOST} to {MOST}"
ONE_Z = "two views are one z: torch.cat([first, second])"


def compute_dtype(z: Tensor) -> torch.dtype:
    """The type of similarities and losses: float64 for float64 input, else float32."""
    return torch.float64 if z.dtype is torch.float64 else torch.float32


def check_matrix(name: str, x: Tensor) -> None:
    """`x` is a (rows, D) matrix of a supported float type with rows and columns."""
    if isinstance(x, Tensor) and (x.is_nested or x.layout is not torch.strided):
        got = "a nested one" if x.is_nested else x.layout
        raise ValueError(f"{name}: expected a dense tensor, got {got}")
    if not isinstance(x, Tensor) or x.dim() != 2 or x.numel() == 0:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        pair = f"; {ONE_Z}" if isinstance(x, (list, tuple)) else ""
        raise ValueError(
            f"{name}: expected a 2-d tensor with at least one row and one column, got {got}{pair}"
        )
    if x.dtype not in FLOATS:
        raise ValueError(
            f"{name}: expected float32, bfloat16, float16 or float64, got {x.dtype}"
        )


def check_views(z: Tensor) -> None:
    """`z` is (2B, D): rows i and i + B are two views of one sequence."""
    check_matrix("z", z)
    if z.shape[0] % 2:
        raise ValueError(
            f"z: expected an even number of rows (rows i and i + B are two views), got {z.shape[0]}"
        )


def check_pair(x: Tensor, y: Tensor) -> None:
    """`x` and `y` are matrices of the same shape, type and device."""
    check_matrix("x", x)
    check_matrix("y", y)
    if y.shape != x.shape or y.dtype != x.dtype or y.device != x.device:
        raise ValueError(
            f"y: expected shape {tuple(x.shape)}, {x.dtype} and device {x.device} as x's, "
            f"got {tuple(y.shape)}, {y.dtype} and {y.device}"
        )


def check_finite(z: Tensor) -> None:
    """Waits for the device."""
    if not torch.isfinite(z).all():
        raise ValueError("z: expected finite values, got NaN or infinity")


def check_options(
    temperature: float,
    positives: bool,
    partner_weight: float,
    denominator: str,
    weighting: str,
    threshold_grad: float | None,
    histogram_bins: int | None,
    reduction: str,
) -> None:
    """The options of `adaptive_info_nce`."""
    if not _is_scale(temperature):
        raise ValueError(
            f"temperature: expected a Python number {RANGE}, which gets no gradient, "
            f"got {_shown(temperature)}"
        )
    if type(positives) is not bool:
        raise ValueError(f"positives: expected True or False, got {positives!r}")
    if not (_is_finite_number(partner_weight) and 0 < partner_weight <= 1):
        raise ValueError(
            f"partner_weight: expected a number in (0, 1], got {_shown(partner_weight)}"
        )
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator: expected one of {DENOMINATORS}, got {denominator!r}")
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting: expected one of {WEIGHTINGS}, got {weighting!r}")
    if weighting == "printed" and partner_weight == 1:
        raise ValueError("partner_weight: expected a number < 1 with weighting='printed', got 1")
    if threshold_grad is not None and not _is_scale(threshold_grad):
        raise ValueError(
            f"threshold_grad: expected None or a width {RANGE}, got {_shown(threshold_grad)}"
        )
    if histogram_bins is not None:
        check_bins("histogram_bins", histogram_bins)
    check_reduction(reduction)


def check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {REDUCTIONS}, got {reduction!r}")


def check_bins(name: str, bins: int) -> None:
    if isinstance(bins, bool) or not isinstance(bins, Integral) or not 1 <= bins <= MOST_BINS:
        raise ValueError(f"{name}: expected an integer from 1 to {MOST_BINS}, got {bins!r}")


def check_quantile(q: float) -> None:
    if not (_is_finite_number(q) and 0 <= q <= 1):
        raise ValueError(f"q: expected a number in [0, 1], got {_shown(q)}")


def threshold_rows(threshold: Tensor | float, z: Tensor) -> Tensor:
    """The threshold as (N,) in the type of the similarities; differentiable."""
    dtype = compute_dtype(z)
    if isinstance(threshold, Tensor):
        if not threshold.is_floating_point():
            raise ValueError(f"threshold: expected a float type, got {threshold.dtype}")
        if threshold.dim() == 2 and threshold.shape == z.shape:
            raise ValueError(f"threshold: expected a number a row, got a matrix like z; {ONE_Z}")
        return _rows("threshold", threshold, z, dtype)
    if isinstance(threshold, Real) and type(threshold) is not bool:
        if abs(threshold) > torch.finfo(dtype).max:  # which PyTorch refuses
            threshold = math.inf if threshold > 0 else -math.inf
        # torch.compile has a graph for every number of torch.full, and one for all of a product.
        return torch.ones(z.shape[0], dtype=dtype, device=z.device).mul_(float(threshold))
    raise ValueError(f"threshold: expected a number or a tensor, got {type(threshold).__name__}")


def group_rows(groups: Tensor | None, z: Tensor) -> Tensor | None:
    """The groups as (N,) int64, or None."""
    if groups is None:
        return None
    if not isinstance(groups, Tensor) or groups.dtype not in INTEGERS:
        got = groups.dtype if isinstance(groups, Tensor) else type(groups).__name__
        raise ValueError(f"groups: expected a tensor of int8 to int64 or uint8, got {got}")
    if groups.dim() == 0:
        raise ValueError(f"groups: expected shape ({len(z)},) or ({len(z) // 2},), got a scalar")
    return _rows("groups", groups, z, torch.int64)


def _rows(name: str, value: Tensor, z: Tensor, dtype: torch.dtype) -> Tensor:
    """A scalar, (B,) or (N,) tensor as a contiguous (N,) of a type."""
    n = z.shape[0]
    if value.layout is not torch.strided:
        raise ValueError(f"{name}: expected a dense tensor, got {value.layout}")
    if value.device != z.device:
        raise ValueError(f"{name}: expected device {z.device} as z's, got {value.device}")
    if value.dim() == 0:
        rows = value.repeat(n)
    elif value.dim() == 1 and value.shape[0] == n:
        rows = value.contiguous()
    elif value.dim() == 1 and 2 * value.shape[0] == n:
        rows = value.repeat(2)
    else:
        or_number = ", or a number" if name == "threshold" else ""
        raise ValueError(
            f"{name}: expected shape ({n},) or ({n // 2},) to fit z {tuple(z.shape)}{or_number}, "
            f"got {tuple(value.shape)}"
        )
    return rows if rows.dtype is dtype else rows.to(dtype)  # which takes its time to change nothing


def _shown(value: object) -> str:
    """A tensor has many lines, and may be on a device."""
    return "a tensor" if isinstance(value, Tensor) else repr(value)


def _is_scale(value: Any) -> bool:
    """A temperature, or a width of the straight-through gradient."""
    return _is_finite_number(value) and 1 / MOST <= value <= MOST


def _is_finite_number(value: Any) -> bool:
    """A tensor is refused: its gradient would be lost without a word."""
    # By comparison, which torch.compile follows for numbers that change from call to call.
    number = type(value) is float or isinstance(value, Real) and type(value) is not bool  # the first is fast
    return number and -math.inf < value < math.inf
