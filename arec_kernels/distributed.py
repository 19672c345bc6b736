"""The same loss over a process group: a process has its rows here, their candidates are everybody's.

Rows, thresholds and groups are gathered before the forward pass, the rows' statistics after it, and the
gradients that come from above before the backward pass: numbers a row, so that every process has what it
takes to compute the whole gradient of its own rows, and nothing has to be summed between processes. In a
training step, with `model` in DistributedDataParallel and B sequences in each process::

    z = model(torch.cat([first, second]))  # (2B, D), rows of this process
    quantiles = row_similarity_quantile(distributed.gather_views(z), 0.9)  # (2BW,), of the rows of all
    threshold = quantiles.view(2, -1)[:, rank * B : (rank + 1) * B].flatten()  # (2B,), of its own
    loss = distributed.adaptive_info_nce(z, threshold)
    loss.backward()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from arec_kernels.arguments import check_reduction, check_views, group_rows, threshold_rows
from arec_kernels.loss import AdaptiveInfoNCE, info_nce_of_rows
from arec_kernels.reference import InfoNCEStats, reduce
from arec_kernels.registration import Local

Group = dist.ProcessGroup | None
_Way = Callable[[Tensor, Group], Tensor]


@overload
def adaptive_info_nce(
    z: Tensor, threshold: Tensor | float, *, process_group: Group = ..., groups: Tensor | None = ...,
    reduction: str = ..., histogram_bins: None = None, **options: Any,
) -> Tensor: ...


@overload
def adaptive_info_nce(
    z: Tensor, threshold: Tensor | float, *, process_group: Group = ..., groups: Tensor | None = ...,
    reduction: str = ..., histogram_bins: int, **options: Any,
) -> tuple[Tensor, InfoNCEStats]: ...


def adaptive_info_nce(
    z: Tensor,  # (N, D), N = 2B
    threshold: Tensor | float,  # (N,), (B,) or a scalar
    *,
    process_group: Group = None,
    groups: Tensor | None = None,  # (N,) or (B,)
    reduction: str = "mean",
    **options: Any,
) -> Tensor | tuple[Tensor, InfoNCEStats]:
    """`arec_kernels.adaptive_info_nce` of the rows of this process among those of all processes.

    As if the rows of all were one batch, of which each process gets the loss of its own. The gradient is
    that of the sum of what the processes make of their losses: with `reduction="mean"` under
    DistributedDataParallel, which averages gradients, a step is that of one process with all rows.
    Every process computes the similarities of its own rows with those of all W processes, in O(W N D)
    memory; all of them run forward and backward. (All similarities, W times as many, with the backends
    "reference" and "cuda", and in the forward pass with `histogram_bins`.)

    Args:
        z: as there; with the same shape and type in every process, which is not checked (a data loader
            wants `drop_last=True`) unless the environment has TORCH_DISTRIBUTED_DEBUG=DETAIL (under which
            DistributedDataParallel of PyTorch 2.13 crashes on CPUs).
        threshold, groups: as there, of the rows of this process; a group has the same number everywhere,
            and processes have groups all or none, which is not checked either.
        process_group: the processes that share their rows; None: all.
        reduction: over the rows of this process.
        options: as there. The histogram is that of all rows.

    Returns:
        As there, of the rows of this process; with `histogram_bins` a pair.

    Raises:
        ValueError: an argument is not as described, torch.distributed is not initialised, or this
            process is not in `process_group`.
        RuntimeError: as there; a second derivative with the backend "reference" too.
    """
    check_reduction(reduction)
    options = AdaptiveInfoNCE(reduction="none", **options).options()
    _check(z, process_group)
    threshold, groups = threshold_rows(threshold, z), group_rows(groups, z)
    first = dist.get_rank(process_group) * len(z) // 2
    local = Local(first, first + len(z) // 2, lambda rows: _gathered(_own(rows, process_group), process_group))
    result = info_nce_of_rows(
        _Exchange.apply(z, process_group, _gathered, _own),
        _Exchange.apply(threshold, process_group, _gathered, _own),
        None if groups is None else _gathered(groups, process_group),
        local=local,
        **options,
    )
    losses, stats = result if isinstance(result, tuple) else (result, None)
    own = reduce(_Exchange.apply(losses, process_group, _own, _gathered), reduction)
    if stats is None:
        return own
    return own, stats._replace(positives=_own(stats.positives, process_group))


def _check(z: Tensor, process_group: Group) -> None:
    check_views(z)
    if dist.get_rank(process_group) < 0:
        raise ValueError("process_group: expected one that this process is in")


def gather_views(z: Tensor, process_group: Group = None) -> Tensor:  # (2B, D) -> (2BW, D)
    """The rows of all W processes as one batch, first views first, for any function of them.

    Where every process computes the same function of all rows (with the same random numbers), the mean
    of the processes' gradients, of the rows' as of the function's own parameters, is the gradient of
    one process that has them all.

    Args:
        z: both views of the rows of this process; the same shape and type in every process, which is
            not checked.
        process_group: the processes that share their rows; None: all.

    Raises:
        ValueError: as `adaptive_info_nce`, for both.
        RuntimeError: a second derivative.
    """
    _check(z, process_group)
    return _Exchange.apply(z, process_group, _gathered, _own_of_mean)


def _gathered(rows: Tensor, group: Group) -> Tensor:  # (2B, ...) -> (2BW, ...)
    """First the first views of all processes, then their second ones."""
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, rows, group=group)
    return torch.stack([part.unflatten(0, (2, -1)) for part in parts], dim=1).flatten(0, 2)


def _own(rows: Tensor, group: Group) -> Tensor:  # (2BW, ...) -> (2B, ...)
    views = rows.unflatten(0, (2, dist.get_world_size(group), -1))
    return views[:, dist.get_rank(group)].flatten(0, 1).clone()  # never a view


def _own_of_mean(rows: Tensor, group: Group) -> Tensor:  # (2BW, ...) -> (2B, ...)
    """A mean over processes leaves 1 / W of what only one of them has."""
    return _own(rows, group) * dist.get_world_size(group)


class _Exchange(torch.autograd.Function):
    """Rows one way and gradients the other, between those of one process and those of all.

    Everybody's losses give their gradients to all (`_own`, then `_gathered`), so that the gradient of all
    rows is whole in every process, which keeps that of its own (`_gathered`, then `_own`). Where every
    process has the loss of all rows, the gradient is whole without that (`_gathered`, then `_own_of_mean`).
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Group, there: _Way, back: _Way) -> Tensor:
        ctx.group, ctx.back = group, back
        return there(rows, group)

    @staticmethod
    @once_differentiable  # the exchange of a second derivative's parts is missing
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(grad, ctx.group), None, None, None
