"""Runs of several processes, against the same run of one."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from programs import SMALL
from tiny import config_of, histories
from torch import Tensor, multiprocessing
from tqdm import tqdm

import arec.trainer
from arec import parallel
from arec.data.batches import TrainingBatches
from arec.data.split import LeaveOneOut
from arec.errors import DataError, RunError
from arec.objectives import build_objective
from arec.ranking import draw_candidates
from arec.scoring import evaluate_model
from arec.trainer import Trainer, training_batches

PROCESSES = 2
# Without dropout, and with the last item masked alone, so that all draw the same.
METHODS = {
    "sasrec": {"method": "sasrec"},
    "sasrec, prefix": {"method": "sasrec", "rows": "prefix"},
    "bert4rec": {"method": "bert4rec", "last_mask_rate": 1.0},
    "duorec, us": {"method": "duorec", "views": "us"},
    "duorec, masked": {"method": "duorec", "task": "masked-item", "last_mask_rate": 1.0},
    "duorec, dot": {"method": "duorec", "similarity": "dot", "same_target_negatives": False},
    "adaptiverec, gradient": {"method": "adaptiverec", "views": "us_x", "threshold_grad": 0.1,
                              "same_target_negatives": False},
    "adaptiverec, row": {"method": "adaptiverec", "simthres": "row", "quantile": 0.8},
    "adaptiverec, released": {"method": "adaptiverec", "threshold_network": "flattened",
                              "regulariser": "released"},
}  # fmt: skip


def epoch(settings: dict, run: Path) -> dict[str, Tensor]:
    """Weights after an epoch whose gradients are clipped, and what it logged."""
    config, split = config_of(dropout=0.0, gradient_clip=0.3, **settings), histories()
    trainer = Trainer(config, split, run)
    trainer.batches = training_batches(config, split, shares=PROCESSES)
    trainer.optimizer = torch.optim.SGD(trainer.objective.parameters(), lr=0.1)
    trainer.schedule = torch.optim.lr_scheduler.ConstantLR(trainer.optimizer, factor=1)
    if config.method == "adaptiverec":
        trainer.objective.reference.fill_(0.5)  # as after an epoch
    logged = trainer._train(1, tqdm(disable=True))
    logged = {name: torch.tensor(value, dtype=torch.float32) for name, value in logged.items()}
    return trainer.objective.state_dict() | logged


def ranked() -> dict:
    """Candidates are a third of the items, and another third for each user."""
    split = histories(items=300)
    torch.manual_seed(0)
    objective = build_objective(config_of(method="sasrec"), 300)
    return evaluate_model(
        objective, split, "test", parallel.scattered(lambda: draw_candidates(split, "test", 0))
    )


def cut_off(at: tuple[int, int] | None, run: Path) -> dict[str, Tensor]:
    """The last weights of a run with dropout, interrupted before a batch of an epoch."""
    config, split = config_of(method="adaptiverec", dropout=0.3, epochs=3), histories()
    whole = TrainingBatches.epoch

    def interrupted(self, number):
        for batch, one in enumerate(whole(self, number)):
            if (number, batch) == at:
                raise KeyboardInterrupt
            yield one

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingBatches, "epoch", interrupted)
        patch.setattr(arec.trainer, "_SAVE_SECONDS", 0)
        trainer = Trainer(config, split, run)
        if at is not None:
            with pytest.raises(KeyboardInterrupt):
                trainer.fit()
    if at is not None:
        trainer = Trainer(config, split, run, resume=True)
        assert (len(trainer.records), trainer.step) == at
    trainer.fit()
    return trainer.objective.state_dict()


def work(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(PROCESSES),
        "RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    with parallel.joined():
        run = folder / f"run-{rank}"
        result = {name: epoch(settings, run) for name, settings in METHODS.items()}
        result["rows"] = Trainer(config_of(method="sasrec"), histories(), run).batches.num_rows
        result["ranked"] = ranked()
        result["whole"] = cut_off(None, run / "whole")
        result["cut between epochs"] = cut_off((2, 0), run / "between")
        result["cut within one"] = cut_off((1, 2), run / "within")
        result["noise"] = torch.rand(3)
        result["wrote"] = run.exists()
        data = parallel.from_main(histories)
        result["few"] = evaluate_few(data)
        result["smallest"] = parallel.smallest(rank + 3)
    torch.save(result, folder / f"{rank}.pt")


def evaluate_few(split: LeaveOneOut) -> dict:
    """With fewer users than processes."""
    torch.manual_seed(0)
    objective = build_objective(config_of(method="sasrec"), split.sequences.num_items)
    return evaluate_model(objective, split.for_users(split.eval_users[:1]), "test")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    if not dist.is_gloo_available():
        pytest.skip("torch.distributed without gloo")
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (folder, port), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", METHODS)
def test_an_epoch_is_that_of_one_process(results: list[dict], tmp_path: Path, name: str) -> None:
    alone = epoch(METHODS[name], tmp_path)
    for own in results:
        assert own[name].keys() == alone.keys()
        for key, value in alone.items():
            # A similarity may be counted in the next bin.
            atol = 2 if key == "similarity_histogram" else 1e-5
            torch.testing.assert_close(own[name][key], value, rtol=1e-4, atol=atol, msg=key)


def test_rows_that_do_not_divide_are_left_out(results: list[dict]) -> None:
    assert [result["rows"] for result in results] == [90] * PROCESSES, "of 91 users"


def test_the_figures_are_those_of_all_users(results: list[dict]) -> None:
    for result in results:
        assert result["ranked"] == ranked()
        assert result["few"] == evaluate_few(histories())


def test_a_run_has_one_model_and_one_folder(results: list[dict]) -> None:
    main, other = results
    for name in ("whole", "cut between epochs", "cut within one"):
        for key, value in main[name].items():
            assert torch.equal(value, other[name][key]), (name, key)
    assert [result["wrote"] for result in results] == [True, False]


def test_dropout_of_a_process_is_its_own_and_repeats(results: list[dict]) -> None:
    main, other = results
    assert not torch.equal(main["noise"], other["noise"])
    for key, value in main["whole"].items():
        assert torch.equal(value, main["cut between epochs"][key]), key


def test_every_process_draws_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    for rank in range(3):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        torch.manual_seed(0)
        parallel.seed_share(1, 2)
        seeds.append(torch.initial_seed())
    assert seeds[0] == 0 and len(set(seeds)) == 3


def test_the_smallest_is_that_of_all_processes(results: list[dict]) -> None:
    assert [result["smallest"] for result in results] == [3] * PROCESSES


@pytest.mark.parametrize("rows", ["all-positions", "prefix"])
def test_shares_are_the_batch(rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = TrainingBatches(
        histories(), batch_size=40, max_length=8, rows=rows, partners=True, shares=4
    )
    monkeypatch.setattr(parallel, "count", lambda: 4)
    for batch in batches.epoch(0):
        shares = []
        for rank in range(4):
            monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
            shares.append(batch.take(parallel.share(len(batch.lengths))))
        assert {len(share.lengths) for share in shares} == {len(batch.lengths) // 4}
        for name, value in vars(batch).items():
            if isinstance(value, Tensor):
                assert torch.equal(torch.cat([getattr(share, name) for share in shares]), value)
    assert len(batches) == len(list(batches.epoch(1)))
    assert batches.num_rows == len(batches.users) // 4 * 4


def test_fewer_rows_than_processes() -> None:
    with pytest.raises(DataError, match="at least 4 rows to train on, one for each process, got 3"):
        TrainingBatches(histories(3), shares=4)


def test_a_batch_that_does_not_divide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_joined", True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "broadcast_object_list", lambda box: None)
    with pytest.raises(RunError, match="batch_size: expected a multiple of the 3 processes"):
        Trainer(config_of(method="sasrec"), histories(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_the_main_process_makes_it_makes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what is made could wait for the others, who wait for it."""
    monkeypatch.setattr(parallel, "_joined", True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    sent = []
    monkeypatch.setattr(dist, "broadcast_object_list", lambda box: sent.append(list(box)))
    assert parallel.from_main(parallel.count) == 1 and parallel.count() == 3
    for error, code in [(RunError("no"), 2), (SystemExit(0), 0)]:
        def fails(error=error):
            raise error
        with pytest.raises(type(error)):
            parallel.from_main(fails)
        assert sent[-1] == [None, code]
        assert parallel.count() == 3


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", PROCESSES, "-m", *arguments),
    ]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    # On standard output gloo of torch 2.10 says who is connected.
    done.stdout = re.sub(r"^\[Gloo\] .*\n", "", done.stdout, flags=re.MULTILINE)
    return done


def test_the_programs_under_torchrun(log_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["--dataset", log_file, "--device", "cpu", "--epochs", 2, *SMALL, "--run-dir", run]
    training = torchrun("arec.train", *settings)
    assert training.returncode == 0, training.stderr
    assert training.stdout.count("NDCG@10") == 1
    assert training.stderr.count("90 users, 20 items") == training.stderr.count("best epoch") == 1
    assert "on cpu in float32, 2 processes;" in training.stderr
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["processes"] == PROCESSES and metrics["epochs"] == 2

    again = torchrun("arec.evaluate", run)
    assert again.returncode == 0 and again.stdout == training.stdout

    refused = torchrun("arec.train", *settings)
    assert refused.returncode != 0
    assert refused.stderr.count("holds a run already") == 1
    assert "arec/" not in refused.stderr, "no traceback of ours"
    odd = torchrun("arec.train", *settings, "--run-dir", tmp_path / "odd", "--batch-size", 31)
    assert odd.stderr.count("expected a multiple of the 2 processes") == 1
    assert not (tmp_path / "odd").exists()

    recommended = torchrun("arec.recommend", run, "--users", "user3", "--top", 2)
    assert recommended.stdout.count("user,rank,item,score") == 1
    assert len(recommended.stdout.splitlines()) == 3

    table = torchrun("arec.reproduce", "table1", "--dataset", log_file, "--device", "cpu",
                     "--runs-dir", tmp_path / "runs", "--epochs", 1, *SMALL)  # fmt: skip
    assert table.returncode == 0, table.stderr
    assert table.stderr.count("run 3 of 3") == table.stdout.count("Table 1") == 1
    assert len(list((tmp_path / "runs").glob("*/metrics.json"))) == 3
