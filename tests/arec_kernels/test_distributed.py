"""The loss over a process group, against the loss of one process with all rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from correctness import clear_thresholds, make_groups, make_rows
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from arec_kernels import adaptive_info_nce, distributed

PROCESSES = 3
OPTIONS = {"temperature": 0.3, "partner_weight": 0.7, "threshold_grad": 0.1, "histogram_bins": 20}
B, D = 70, 8  # more than a tile, so that tiles without rows of a process are passed over


def of_process(rows: Tensor, rank: int, processes: int) -> Tensor:
    """Of all rows, first views first, those of one process."""
    first, second = rows.chunk(2)
    return torch.cat((first.chunk(processes)[rank], second.chunk(processes)[rank]))


def problem(processes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z = make_rows(2 * B * processes, D, torch.float64)
    groups = make_groups(len(z))
    upstream = torch.randn(len(z), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return z, clear_thresholds(z, groups), groups, upstream


def own_loss(members: list[int]) -> dict[str, Tensor]:
    """Loss and gradients of this process in a group of `members`, each with its part of a problem."""
    group = dist.new_group(members)
    if dist.get_rank() not in members:
        for function in (distributed.adaptive_info_nce, distributed.gather_views):
            threshold = {"threshold": 0.0} if function is distributed.adaptive_info_nce else {}
            with pytest.raises(ValueError, match="process_group: expected one that this process is in"):
                function(torch.ones(2, 1), **threshold, process_group=group)
        return {}
    z, threshold, groups, upstream = (
        of_process(x, dist.get_rank(group), len(members)) for x in problem(len(members))
    )
    z.requires_grad_(), threshold.requires_grad_()
    loss, stats = distributed.adaptive_info_nce(
        z, threshold, groups=groups, process_group=group, reduction="none", **OPTIONS
    )
    loss *= 1  # nothing else needs the tensor that comes back, so it may be changed
    loss.backward(upstream)
    return {
        "loss": loss.detach(), "positives": stats.positives, "histogram": stats.histogram,
        "z": z.grad, "threshold": threshold.grad,
    }


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(D, 4, dtype=torch.float64)


def averaged_gradient(gather: bool) -> Tensor:
    """Of the op over all processes, or of all rows gathered into the op of one."""
    parallel = DistributedDataParallel(model())
    rows = parallel(of_process(problem(PROCESSES)[0], dist.get_rank(), PROCESSES))
    if gather:
        loss = adaptive_info_nce(distributed.gather_views(rows), 0.2, temperature=0.3)
    else:
        loss = distributed.adaptive_info_nce(rows, 0.2, temperature=0.3)
    loss.backward()
    return parallel.module.weight.grad


def second_derivatives_are_refused() -> None:
    """Of "reference" and of any function of gathered rows: parts of them are other processes'."""
    def loss(z: Tensor) -> Tensor:
        return distributed.adaptive_info_nce(z, 0.2, backend="reference")

    for function in (loss, lambda z: distributed.gather_views(z).square().sum()):
        z = of_process(problem(PROCESSES)[0], dist.get_rank(), PROCESSES).requires_grad_()
        (grad,) = torch.autograd.grad(function(z), z, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            grad.square().sum().backward()


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES
    )
    result = {
        "all": own_loss([0, 1, 2]), "some": own_loss([0, 2]), "one": own_loss([1]),
        "averaged": averaged_gradient(gather=False), "gathered": averaged_gradient(gather=True),
    }
    second_derivatives_are_refused()
    torch.save(result, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    if not dist.is_gloo_available():
        pytest.skip("torch.distributed without gloo")
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(work, (folder,), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize(
    ("name", "members"), [("all", [0, 1, 2]), ("some", [0, 2]), ("one", [1])]
)
def test_is_that_of_one_process_with_all_rows(
    results: list[dict], name: str, members: list[int]
) -> None:
    z, threshold, groups, upstream = problem(len(members))
    z.requires_grad_(), threshold.requires_grad_()
    loss, stats = adaptive_info_nce(z, threshold, groups=groups, reduction="none", **OPTIONS)
    loss.backward(upstream)
    assert stats.positives.sum() > 0 and threshold.grad.abs().sum() > 0
    expected = {"loss": loss.detach(), "positives": stats.positives, "z": z.grad, "threshold": threshold.grad}
    for position, rank in enumerate(members):
        own = results[rank][name]
        for key, value in expected.items():
            torch.testing.assert_close(own[key], of_process(value, position, len(members)))
        assert torch.equal(own["histogram"], stats.histogram)


def test_a_step_under_data_parallelism_is_that_of_one_process(results: list[dict]) -> None:
    alone = model()
    adaptive_info_nce(alone(problem(PROCESSES)[0]), 0.2, temperature=0.3).backward()
    for result in results:
        torch.testing.assert_close(result["averaged"], alone.weight.grad)
        torch.testing.assert_close(result["gathered"], alone.weight.grad)


def test_gather_views_of_an_odd_number_of_rows() -> None:
    with pytest.raises(ValueError, match="z: expected an even number of rows"):
        distributed.gather_views(torch.ones(3, 1))


def test_without_a_process_group() -> None:
    with pytest.raises(ValueError, match="process group has not been initialized"):
        distributed.adaptive_info_nce(torch.ones(2, 1), 0.0)


def test_bad_reduction() -> None:
    with pytest.raises(ValueError, match="reduction: expected one of"):
        distributed.adaptive_info_nce(torch.ones(2, 1), 0.0, reduction="max")
