"""One run by several processes, as torchrun starts them; in a process of its own nothing of this does anything.

Every process holds the data, the model and the optimiser, draws the same batches, and encodes its share
of the rows of each: the mean of the processes' gradients is what one process would have. What compares
rows with each other, the contrast, is computed by every process for the gathered rows of all. The first
process, "main", alone reads the data and writes the run.

Tested with gloo on CPUs. GPUs, which take NCCL, have not run this.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from arec.errors import UserError
from arec_kernels import distributed

log = logging.getLogger("arec")
T = TypeVar("T")
_joined = False


@contextmanager
def joined() -> Iterator[None]:
    """In the group of the processes that torchrun has started, if it has."""
    global _joined
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    gpus = torch.cuda.device_count()
    if local_rank() < gpus:
        torch.cuda.set_device(local_rank())
    # The others wait while the main process reads the data, which may take longer than the usual half hour.
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=timedelta(hours=3))
    _joined = True
    yield
    # Not after an error: the others may be waiting for this process, and torchrun ends them.
    _joined = False
    dist.destroy_process_group()


def count() -> int:
    """1, too, in a group that is somebody else's."""
    return dist.get_world_size() if _joined else 1


def rank() -> int:
    return dist.get_rank() if _joined else 0


def local_rank() -> int:
    """Among the processes of this machine."""
    return int(os.environ["LOCAL_RANK"])


def is_main() -> bool:
    return rank() == 0


def say(message: str) -> None:
    """To whoever waits, from the main process; not where arec's logger is set to show less."""
    if is_main() and not _quiet():
        print(message, file=sys.stderr)


def _quiet() -> bool:
    return log.level > logging.INFO


def progress(total: int, unit: str, **options: Any) -> tqdm:
    """A bar in the main process, where somebody watches."""
    hidden = None if is_main() and not _quiet() else True  # None: where nobody watches
    return tqdm(total=total, unit=unit, dynamic_ncols=True, disable=hidden, **options)


def from_main(make: Callable[[], T]) -> T:
    """Call ``make`` in the main process, and return what it makes in every process.

    Within it `count` is 1. After an error that a person can mend, or a SystemExit, which is raised there,
    the other processes exit with its code.
    """
    global _joined
    if count() == 1:
        return make()
    made: T | None = None
    error: UserError | SystemExit | None = None
    if is_main():
        _joined = False
        try:
            made = make()
        except (UserError, SystemExit) as caught:
            error = caught
        finally:
            _joined = True
    box: list[Any] = [made, None if error is None else getattr(error, "code", 2)]
    dist.broadcast_object_list(box)
    if error is not None:
        raise error
    if box[1] is not None:
        sys.exit(box[1])
    return box[0]


def share(rows: int, of: int | None = None) -> slice:
    """Of so many rows, those of a process, by default this one."""
    of = rank() if of is None else of
    return slice(rows * of // count(), rows * (of + 1) // count())


def scattered(make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Call ``make`` in the main process, and return of its arrays the rows that are this process's `share`."""
    if count() == 1:
        return make()
    whole: dict[str, np.ndarray] = {}
    from_main(lambda: whole.update(make()))
    parts = [{name: rows[share(len(rows), each)] for name, rows in whole.items()} for each in range(count())]
    box: list[Any] = [None]
    dist.scatter_object_list(box, parts if is_main() else None)
    return box[0]


def smallest(number: int) -> int:
    """Of those of all processes."""
    least = torch.tensor(number)
    if count() > 1:
        dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def summed(own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sums of all processes' arrays, which have the same shapes everywhere."""
    if count() > 1:
        for array in own.values():
            dist.all_reduce(torch.from_numpy(array))  # in place
    return own


def share_of_mean(mean: Tensor, rows: int) -> Tensor:
    """A mean over so many rows here, weighted so that its mean over processes is that over all rows."""
    if count() == 1:
        return mean
    all_rows = torch.tensor(float(rows), device=mean.device)
    dist.all_reduce(all_rows)
    return mean * (rows * count() / all_rows.clamp(min=1))


def concatenated(own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows of all processes, in the order of `share`."""
    if count() == 1:
        return own
    parts: list[Any] = [None] * count()
    dist.all_gather_object(parts, own)
    return {name: np.concatenate([part[name] for part in parts]) for name in own}


def seed_share(*numbers: int) -> None:
    """Let every process but the main one go on with random numbers of its own."""
    if not is_main():
        torch.manual_seed(int(np.random.SeedSequence([rank(), *numbers]).generate_state(1)[0]))


def average(
    parameters: Iterable[nn.Parameter], scalars: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Put the mean over all processes in the place of each gradient, and return that of 0-d tensors."""
    if count() == 1:
        return scalars
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # One message: with gloo each takes a millisecond, however short it is.
    values = torch.cat([x.flatten() for x in (*gradients, *scalars.values())])
    dist.all_reduce(values)
    values /= count()
    *means, scalar_means = values.split([*(x.numel() for x in gradients), len(scalars)])
    for gradient, mean in zip(gradients, means):
        gradient.copy_(mean.view_as(gradient))
    return dict(zip(scalars, scalar_means.clone()))


def gather_views(z: Tensor) -> Tensor:  # (2B, d) -> (2BW, d)
    """Both views of the rows of all processes, with gradient; see `arec_kernels.distributed`."""
    return z if count() == 1 else distributed.gather_views(z)


def gather_rows(rows: Tensor) -> Tensor:  # (B,) -> (BW,)
    """Numbers of the rows of all processes, in the order in which `gather_views` has these."""
    if count() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(count())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
