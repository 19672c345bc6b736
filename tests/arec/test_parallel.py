"""Runs of several processes, against the same run of one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from programs import SMALL
from tiny import sequences_of
from torch import Tensor, multiprocessing

from arec import parallel
from arec.checkpoint import RunError
from arec.config import Config
from arec.data.batches import TrainingBatches
from arec.data.split import LeaveOneOut
from arec.errors import DataError
from arec.objectives import build_objective
from arec.trainer import Trainer, evaluate, training_batches

PROCESSES = 2
# Without dropout, so that both draw the same.
METHODS = {
    "sasrec": {"method": "sasrec"},
    "sasrec, prefix": {"method": "sasrec", "rows": "prefix"},
    "duorec, us": {"method": "duorec", "views": "us"},
    "duorec, dot": {"method": "duorec", "similarity": "dot", "same_target_negatives": False},
    "adaptiverec, gradient": {"method": "adaptiverec", "views": "us_x", "threshold_grad": 0.1,
                              "same_target_negatives": False},
    "adaptiverec, row": {"method": "adaptiverec", "simthres": "row", "quantile": 0.8},
    "adaptiverec, released": {"method": "adaptiverec", "threshold_network": "flattened",
                              "regulariser": "released"},
}  # fmt: skip


def walks(users: int = 90) -> LeaveOneOut:
    """Along a circle of 20 items."""
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(20, size=users), rng.integers(6, 15, size=users)
    sequences = (
        (start + np.arange(length)) % 20 + 1 for start, length in zip(starts, lengths)
    )
    return LeaveOneOut(sequences_of(*sequences, num_items=20))


def config_of(**settings: object) -> Config:
    small = {"hidden_size": 16, "feed_forward": 16, "max_length": 8, "batch_size": 32}
    return Config(**small, **settings)


def step(settings: dict) -> dict[str, Tensor]:
    """What a batch gives: gradients, logged scalars and counted similarities."""
    config, split = config_of(dropout=0.0, **settings), walks()
    torch.manual_seed(0)
    objective = build_objective(config, split.sequences.num_items)
    if config.method == "adaptiverec":
        objective.reference.fill_(0.5)  # as after an epoch
    batch = next(training_batches(config, split, shares=parallel.count()).epoch(0))
    loss, scalars = objective(batch.share(parallel.rank(), parallel.count()))
    (batch.weight * loss).backward()
    logged = parallel.average(objective.parameters(), {"loss": loss.detach(), **scalars})
    gradients = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    return {**gradients, **logged, **dict(objective.named_buffers())}


def trained(run: Path) -> dict[str, object]:
    """A run with dropout that was interrupted after its first epoch."""
    config, split = config_of(method="adaptiverec", dropout=0.3, epochs=2), walks()
    Trainer(config.model_copy(update={"epochs": 1}), split, run).fit()
    trainer = Trainer(config, split, run, resume=True)
    return {
        "epochs": [record["epoch"] for record in trainer.fit()],
        "validated": [record["valid"] for record in trainer.records],
        "model": trainer.objective.state_dict(),
        "noise": torch.rand(3),
        "evaluated": evaluate(trainer.objective, split, "test"),
        "objective": trainer.objective,
    }


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES
    )
    result = {name: step(settings) for name, settings in METHODS.items()}
    result["run"] = trained(folder / "run")
    torch.save(result, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    if not dist.is_gloo_available():
        pytest.skip("torch.distributed without gloo")
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(work, (folder,), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_that_of_one_process(results: list[dict], name: str) -> None:
    alone = step(METHODS[name])
    assert any("items.weight" in key for key in alone)
    for own in results:
        assert own[name].keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(own[name][key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_a_run_has_one_model_and_the_figures_of_all_users(results: list[dict]) -> None:
    main, other = (result["run"] for result in results)
    assert main["epochs"] == other["epochs"] == [1, 2]
    assert main["validated"] == other["validated"]
    for name, value in main["model"].items():
        assert torch.equal(value, other["model"][name]), name
    assert not torch.equal(main["noise"], other["noise"]), "dropout of a process is its own"
    for result in (main, other):
        assert result["evaluated"] == evaluate(result["objective"], walks(), "test")


@pytest.mark.parametrize("rows", ["all-positions", "prefix"])
def test_shares_are_the_batch(rows: str) -> None:
    batches = TrainingBatches(
        walks(91), batch_size=40, max_length=8, rows=rows, partners=True, shares=4
    )
    seen = 0
    for batch in batches.epoch(0):
        shares = [batch.share(rank, 4) for rank in range(4)]
        assert len({len(share.lengths) for share in shares}) == 1
        for name, value in vars(batch).items():
            if isinstance(value, Tensor):
                assert torch.equal(torch.cat([getattr(share, name) for share in shares]), value)
        targets = [int((share.targets > 0).sum()) for share in shares]
        assert [share.part for share in shares] == pytest.approx(
            [4 * own / sum(targets) for own in targets]
        )
        seen += len(batch.lengths)
    assert len(batches) == len(list(batches.epoch(1)))
    assert 0 <= len(batches.users) - seen < 4 and seen % 4 == 0
    intents = torch.arange(2 * len(batch.lengths))
    assert replace(batch, intents=intents).share(0, 4).intents is None, "of whole batches only"


def test_fewer_users_than_processes() -> None:
    with pytest.raises(DataError, match="at least 4 users to train with, a share for each process"):
        TrainingBatches(walks(3), shares=4)


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", PROCESSES, "-m", *arguments),
    ]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def test_the_programs_under_torchrun(log_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["--dataset", log_file, "--epochs", 2, *SMALL, "--run-dir", run]
    training = torchrun("arec.train", *settings)
    assert training.returncode == 0, training.stderr
    assert training.stdout.count("test (filtered)") == 1
    assert training.stderr.count("90 users, 20 items") == training.stderr.count("best epoch") == 1
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["processes"] == PROCESSES and metrics["epochs"] == 2

    again = torchrun("arec.evaluate", run)
    assert again.returncode == 0 and again.stdout == training.stdout

    refused = torchrun("arec.train", *settings)
    assert refused.returncode != 0
    assert refused.stderr.count("holds a run already") == 1


def test_a_batch_that_does_not_divide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "count", lambda: 3)
    with pytest.raises(RunError, match="batch_size: expected a multiple of the 3 processes"):
        Trainer(config_of(method="sasrec"), walks(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
