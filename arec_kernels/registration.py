"""The registered ops: one schema, one fake and one autograd formula, whatever backend runs them.

An op `name` is registered in the library `arec_kernels` once for each backend, as `<backend>_<name>`,
with the same schema; the compiled extensions `arec_kernels._C` and `arec_kernels._C_cuda`, and
`arec_kernels.triton`, implement them. Without any the package still works, through
`arec_kernels.reference`.

Shapes and types (N = 2B rows; "float" is float32, or float64 for float64 `z`):

    z                     (N, D)  float32, bfloat16, float16 (float64: cpp), any strides
    threshold             (N,)    float; groups (N,) int64 or None
    loss                  (), or (N,) with the reduction "none", float
    positives_similarity  (N,) float, the sum of s_ij over M+(i)
    log_denominator       (N,)    float64: log D_i, from which backward subtracts a logit near it
    num_positives         (N,)    int64, m_i; 0 where `positives` is false
    histogram             (histogram_bins,) int64
    grad_loss             of loss's shape, float, may be expanded (stride 0)
    grad_z                (N, D)  z's type
    grad_threshold        (N,)    float; (0,) where threshold_grad is 0

Of each view's rows those from `local_begin` to before `local_end` are wanted (all: 0 and B; part of them: with
the reduction "none"). What is returned for others may be anything, and so may the histogram.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from arec_kernels.arguments import compute_dtype

BACKENDS = ("cpp", "triton", "cuda")
EXTENSIONS = {"cpp": "_C", "cuda": "_C_cuda"}  # the compiled ones
WHAT_BUILDS = {"cpp": "a C++ compiler", "cuda": "nvcc and a PyTorch with CUDA"}

SCHEMAS = {
    "forward": (
        "(Tensor z, Tensor threshold, Tensor? groups, float temperature, bool positives, "
        "float partner_weight, str denominator, str weighting, str reduction, int histogram_bins, "
        "SymInt local_begin, SymInt local_end) -> "
        "(Tensor loss, Tensor log_denominator, Tensor num_positives, "
        "Tensor positives_similarity, Tensor histogram)"
    ),
    "backward": (
        "(Tensor grad_loss, Tensor z, Tensor threshold, Tensor? groups, Tensor log_denominator, "
        "Tensor num_positives, Tensor positives_similarity, float temperature, bool positives, "
        "float partner_weight, str denominator, str weighting, str reduction, "
        "float threshold_grad, SymInt local_begin, SymInt local_end) -> "
        "(Tensor grad_z, Tensor grad_threshold)"
    ),
    "histogram": "(Tensor z, Tensor? groups, int bins) -> Tensor",
    "quantile": "(Tensor z, float q, Tensor? groups) -> Tensor",
    "uniformity": "(Tensor x) -> Tensor",
}


def _fake_forward(z, threshold, groups, temperature, positives, partner_weight, denominator,
                  weighting, reduction, histogram_bins, local_begin, local_end):
    def row():
        return threshold.new_empty(z.shape[0])

    log_denominator = threshold.new_empty(z.shape[0], dtype=torch.float64)
    counts = threshold.new_empty(z.shape[0], dtype=torch.int64)
    histogram = threshold.new_empty(histogram_bins, dtype=torch.int64)
    loss = row() if reduction == "none" else threshold.new_empty(())
    return loss, log_denominator, counts, row(), histogram


def _fake_backward(grad_loss, z, threshold, groups, log_denominator, num_positives,
                   positives_similarity, temperature, positives, partner_weight, denominator,
                   weighting, reduction, threshold_grad, local_begin, local_end):
    return z.new_empty(z.shape), threshold.new_empty(z.shape[0] if threshold_grad else 0)


def _fake_histogram(z, groups, bins):
    return z.new_empty(bins, dtype=torch.int64)


def _fake_quantile(z, q, groups):
    return z.new_empty(z.shape[0], dtype=compute_dtype(z))


def _fake_uniformity(x):
    return x.new_empty((), dtype=compute_dtype(x))


FAKES = {
    "forward": _fake_forward,
    "backward": _fake_backward,
    "histogram": _fake_histogram,
    "quantile": _fake_quantile,
    "uniformity": _fake_uniformity,
}


def _triton_implementation(name: str) -> Callable:
    """Imports the Triton kernels at their first use: Triton itself takes a second to import."""

    def implementation(*args):
        return getattr(importlib.import_module("arec_kernels.triton"), name)(*args)

    return implementation


LIBRARY = torch.library.Library("arec_kernels", "DEF")
for _backend in BACKENDS:
    for _name, _schema in SCHEMAS.items():
        LIBRARY.define(f"{_backend}_{_name}{_schema}")
        torch.library.register_fake(
            f"arec_kernels::{_backend}_{_name}", FAKES[_name], lib=LIBRARY
        )

if importlib.util.find_spec("triton"):
    for _name in SCHEMAS:
        for _device in ("CPU", "CUDA"):
            LIBRARY.impl(f"triton_{_name}", _triton_implementation(_name), _device)

EXTENSION_ERRORS = {}
for _backend, _extension in EXTENSIONS.items():
    try:
        _module = importlib.import_module(f"arec_kernels.{_extension}")
    except ModuleNotFoundError:
        EXTENSION_ERRORS[_backend] = f"not built with the package, for want of {WHAT_BUILDS[_backend]}"
        if _backend == "cpp":
            warnings.warn(
                f"arec_kernels.{_extension}: {EXTENSION_ERRORS[_backend]}; on a CPU the PyTorch reference runs, "
                "many times slower and in O(N^2) memory",
                stacklevel=2,
            )
    except ImportError as error:
        EXTENSION_ERRORS[_backend] = str(error)
        warnings.warn(f"arec_kernels.{_extension} does not load: {error}", stacklevel=2)
    else:
        # With other arguments than the kernels' a call would crash. setup.py builds it in.
        if getattr(_module, "SCHEMAS", None) != zlib.crc32(repr(SCHEMAS).encode()) >> 1:
            EXTENSION_ERRORS[_backend] = "built from other sources; install the package again: pip install -e ."
            warnings.warn(f"{_module.__file__}: {EXTENSION_ERRORS[_backend]}", stacklevel=2)

OPS = {
    name: {
        backend: getattr(torch.ops.arec_kernels, f"{backend}_{name}").default
        for backend in BACKENDS
    }
    for name in SCHEMAS
}

IMPLEMENTED = {
    (backend, device)
    for backend in BACKENDS
    for device in ("cpu", "cuda")
    if backend not in EXTENSION_ERRORS
    and torch._C._dispatch_has_kernel_for_dispatch_key(
        f"arec_kernels::{backend}_forward", device.upper()
    )
}


def info_nce(
    z: Tensor,
    threshold: Tensor,
    groups: Tensor | None,
    backend: str,
    options: tuple,  # temperature, positives, partner_weight, denominator, weighting, reduction
    threshold_grad: float,
    histogram_bins: int,
    local: Local | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The reduced loss, m_i and the histogram; differentiable once, in z and threshold."""
    # In these z may want a derivative that `requires_grad` does not tell of: it would be lost.
    forward_mode = torch.autograd.forward_ad._current_level >= 0  # which torch.no_grad leaves on
    transformed = torch.is_grad_enabled() and torch._C._are_functorch_transforms_active()
    if forward_mode or transformed:
        raise RuntimeError(
            f"adaptive_info_nce: backend {backend!r} knows neither torch.func nor forward-mode "
            "derivatives; use backend='reference', or, where none is wanted, torch.no_grad() outside "
            "of forward mode"
        )
    if torch.is_grad_enabled() and (z.requires_grad or threshold.requires_grad):
        return InfoNCE.apply(
            z, threshold, groups, backend, options, threshold_grad, histogram_bins, local
        )
    loss, _, num_positives, _, histogram = _forward(
        z, threshold, groups, backend, options, histogram_bins, local
    )
    return loss, num_positives, histogram


class Local(NamedTuple):
    """Of each view, the rows [begin, end), where `gather` has those of others from elsewhere."""

    begin: int
    end: int
    gather: Callable[[Tensor], Tensor]  # (N, ...) right for these rows -> (N, ...) right for all


def _local_range(z: Tensor, local: Local | None) -> tuple[int, int]:
    return (0, z.shape[0] // 2) if local is None else local[:2]


def _forward(z, threshold, groups, backend, options, histogram_bins, local):
    # A histogram is that of all rows.
    local_range = _local_range(z, None if histogram_bins else local)
    return OPS["forward"][backend](z, threshold, groups, *options, histogram_bins, *local_range)


class InfoNCE(torch.autograd.Function):
    """`info_nce` as a node of the graph.

    Not `torch.library.register_autograd`: at small N its Python layers take longer than the kernels. For
    the same reason the ops reduce the rows' losses themselves.
    """

    @staticmethod
    def forward(ctx, z, threshold, groups, backend, options, threshold_grad, histogram_bins, local):
        loss, *statistics, histogram = _forward(
            z, threshold, groups, backend, options, histogram_bins, local
        )
        if local is not None:
            statistics = [local.gather(rows) for rows in statistics]
        num_positives = statistics[1]
        ctx.save_for_backward(z, threshold, groups, *statistics)
        ctx.constants = backend, options, threshold_grad, _local_range(z, local)
        ctx.mark_non_differentiable(num_positives, histogram)
        ctx.set_materialize_grads(False)
        return loss, num_positives, histogram

    @staticmethod
    def backward(ctx, grad_loss, *_):
        if grad_loss is None:
            return (None,) * 8
        backend, options, threshold_grad, local_range = ctx.constants
        if not ctx.needs_input_grad[1]:
            threshold_grad = 0.0
        # Grad mode is on here only under create_graph=True.
        op = OPS["backward"][backend]
        backward = partial(InfoNCEBackward.apply, op) if torch.is_grad_enabled() else op
        grad_z, grad_threshold = backward(
            grad_loss, *ctx.saved_tensors, *options, threshold_grad, *local_range
        )
        return grad_z, grad_threshold if threshold_grad else None, *(None,) * 6


class InfoNCEBackward(torch.autograd.Function):
    """The backward op as a node of the graph, which refuses to be differentiated again."""

    @staticmethod
    def forward(ctx, op, *args):
        return op(*args)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "adaptive_info_nce: the kernels have no second derivative; use backend='reference'"
        )
