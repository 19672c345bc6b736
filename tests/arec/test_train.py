"""The programs as a person runs them, on small data."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import arec.trainer
from arec import checkpoint, evaluate, recommend, train
from arec.cli import run
from arec.config import Config
from arec.data.batches import TrainingBatches
from arec.objectives import adaptiverec
from arec.results import format_results
from arec.trainer import Trainer

SMALL = ["--hidden-size", "16", "--feed-forward", "16", "--max-length", "8", "--batch-size", "32"]


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    """90 users who walk along a circle of 20 items."""
    rng = np.random.default_rng(0)
    path = tmp_path / "walks.txt.gz"
    with gzip.open(path, "wt") as file:
        for user in range(90):
            start, length = rng.integers(20), rng.integers(6, 15)
            walk = " ".join(f"film{(start + step) % 20}" for step in range(length))
            print(f"user{user} {walk}", file=file)
    return path


def call(program, monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    run(program.__name__, program.main)


def test_train_then_evaluate_repeats_the_figures(log_file, tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 6, *SMALL)
    trained = json.loads((folder / "metrics.json").read_text())
    assert trained["epochs"] == 6
    assert len((folder / "log.jsonl").read_text().splitlines()) == 6
    test, popularity = trained["test"], trained["popularity"]
    assert test["filtered"]["NDCG@10"] > popularity["filtered"]["NDCG@10"]
    assert test["filtered"]["NDCG@10"] >= test["unfiltered"]["NDCG@10"]
    assert list(test) == ["filtered", "unfiltered", "popular-100", "random-100"]
    candidates = (folder / "candidates.npz").read_bytes()
    table, messages = capsys.readouterr()
    assert messages == (folder / "train.log").read_text(), "no progress bar where nobody watches"
    assert "90 users, 20 items" in messages
    assert len(re.findall(r"^epoch +\d  loss", messages, flags=re.MULTILINE)) == 6
    assert "some users leave only" in table, "of 20 items nobody has 100 left"

    call(evaluate, monkeypatch, folder)
    assert capsys.readouterr().out == table, "to the last digit"
    assert (folder / "candidates.npz").read_bytes() == candidates, "drawn once"


def test_the_best_epoch_is_ranked_and_the_data_are_loaded_once(
    log_file, tmp_path, monkeypatch, capsys
) -> None:
    folder, loads = tmp_path / "run", []
    load = checkpoint.load

    def counted(*args, **kwargs):
        loads.append(args)
        return load(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "load", counted)
        patch.setattr(Trainer, "_validation", lambda self, epoch: -epoch)
        call(train, patch, "--dataset", log_file, "--run-dir", folder, "--epochs", 3, *SMALL)
    assert len(loads) == 1
    assert torch.load(folder / "checkpoint.pt")["epoch"] == 1
    table = capsys.readouterr().out
    call(evaluate, monkeypatch, folder)
    assert capsys.readouterr().out == table

    (folder / "metrics.json").unlink()  # as a run cut off before the ranking
    torch.save([1], folder / "checkpoint.pt")
    with pytest.raises(SystemExit) as exit:
        call(train, monkeypatch, "--resume", folder)
    assert exit.value.code == 2
    assert "checkpoint.pt: does not fit the settings" in capsys.readouterr().err


def test_one_user(tmp_path, monkeypatch, capsys) -> None:
    """Nothing to contrast with: figures that do not exist are left out, not NaN."""
    folder, log_file = tmp_path / "run", tmp_path / "one.txt"
    log_file.write_bytes(b"user a b a c b a d\r\n")
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1,
         "--k-core", 1, *SMALL)  # fmt: skip
    assert "SimThres" not in capsys.readouterr().out
    assert "NaN" not in (folder / "metrics.json").read_text()
    record = json.loads((folder / "log.jsonl").read_text())
    assert "alignment" in record and "uniformity" not in record


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("u1 a b c\nu2 b c a\nu3 c a b\n", "no user has 2 items to train with"),
        ("u1 a a a a\nu2 a a a a\n", "expected at least 2 items, got 1"),
    ],
)
def test_nothing_to_train_on_leaves_nothing_behind(
    tmp_path, monkeypatch, capsys, text, message
) -> None:
    folder, log_file = tmp_path / "run", tmp_path / "log.txt"
    log_file.write_text(text)
    with pytest.raises(SystemExit) as exit:
        call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--k-core", 1, *SMALL)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("warmup_epochs", [0.0, 0.01, 0.7, 2.0, 100.0])
def test_the_learning_rate_rises_to_its_peak_and_then_falls_or_stays(
    log_file, tmp_path, schedule, warmup_epochs
) -> None:
    config = Config(
        method="sasrec", dataset=str(log_file), epochs=4, schedule=schedule, batch_size=32,
        warmup_epochs=warmup_epochs,
    )  # fmt: skip
    trainer = Trainer(config, checkpoint.load_data(config), tmp_path)
    steps = 4 * len(trainer.batches)
    rates = [trainer._rate(step) for step in range(steps)]
    warmup = round(min(warmup_epochs, 2) * len(trainer.batches))
    assert max(rates) == pytest.approx(1), "the peak, however long the warm-up"
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert trainer._rate(steps) == (pytest.approx(0) if schedule == "cosine" else 1)


def test_the_same_seed_gives_the_same_run(log_file, tmp_path, monkeypatch) -> None:
    results = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        folder = tmp_path / name
        call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 2,
             "--seed", seed, *SMALL)  # fmt: skip
        state = torch.load(folder / "checkpoint.pt")["objective"]
        results.append(state["encoder.items.weight"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize(("last", "batches"), [(0, 0), (2, 0), (0, 1), (2, 1)])
def test_resumed_run_equals_an_uninterrupted_one(
    log_file, tmp_path, monkeypatch, capsys, last, batches
) -> None:
    options = ["--dataset", log_file, "--epochs", 4, *SMALL]
    call(train, monkeypatch, *options, "--run-dir", tmp_path / "whole")

    original = TrainingBatches.epoch

    def cut_off(self, epoch):
        for at, batch in enumerate(original(self, epoch)):
            if (epoch, at) == (last, batches):
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(arec.trainer, "_SAVE_SECONDS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingBatches, "epoch", cut_off)
        with pytest.raises(SystemExit) as exit:
            call(train, monkeypatch, *options, "--run-dir", tmp_path / "cut")
    assert exit.value.code == 130
    kept = f"{last} epochs" + (f" and {batches} of " if batches else f"; --resume {tmp_path / 'cut'}")
    assert f"interrupted after {kept}" in capsys.readouterr().err
    if last:
        call(evaluate, monkeypatch, tmp_path / "cut")
        assert "training has not finished" in capsys.readouterr().err
    call(train, monkeypatch, "--resume", tmp_path / "cut")
    call(evaluate, monkeypatch, tmp_path / "cut")
    assert "not finished" not in capsys.readouterr().err

    whole, cut = (torch.load(tmp_path / name / "last.pt")["objective"] for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and "reference" in whole
    for name, value in whole.items():
        assert torch.equal(value, cut[name]), name
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("whole", "cut")]
    assert metrics[0]["test"] == metrics[1]["test"]


def test_adaptiverec_trains_through_the_op_and_nothing_else(
    log_file, tmp_path, monkeypatch
) -> None:
    calls = []
    op = adaptiverec.adaptive_info_nce

    def counted(*args, **kwargs):
        calls.append(args)
        return op(*args, **kwargs)

    monkeypatch.setattr(adaptiverec, "adaptive_info_nce", counted)
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", tmp_path / "run", "--epochs", 3,
         "--views", "su", *SMALL)  # fmt: skip
    steps = 3 * -(-90 // 32)
    assert len(calls) == steps
    sources = Path(train.__file__).parent.rglob("*.py")
    assert not [path.name for path in sources if "logsumexp" in path.read_text()]


def test_early_stopping_keeps_the_best_epoch(log_file, tmp_path, monkeypatch) -> None:
    figures = iter([0.1, 0.3, 0.2, 0.2, 0.25, 0.9])

    def planned(objective, split, stage):
        value = next(figures) if stage == "valid" else 0.0
        return {name: {"NDCG@10": value} for name in ("filtered", "unfiltered")}

    monkeypatch.setattr(arec.trainer, "evaluate", planned)
    config = train.Config(
        dataset=str(log_file), hidden_size=16, feed_forward=16, epochs=10, patience=3
    )
    trainer = Trainer(config, checkpoint.load_data(config), tmp_path)
    assert len(trainer.fit()) == 5
    assert torch.load(tmp_path / "checkpoint.pt")["epoch"] == trainer.best_epoch == 2


@pytest.mark.parametrize("broken", [1, 2])
def test_a_broken_loss_writes_no_checkpoint(
    log_file, tmp_path, monkeypatch, capsys, broken
) -> None:
    original = Trainer._train

    def explode(self, epoch, bar):
        if epoch == broken:
            with torch.no_grad():
                self.objective.encoder.items.weight.fill_(torch.nan)
        return original(self, epoch, bar)

    monkeypatch.setattr(Trainer, "_train", explode)
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as exit:
        call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 3, *SMALL)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert f"epoch {broken}: the training loss is nan" in error
    assert ("still holds the best epoch" in error) is (broken > 1)
    kept = sorted(path.name for path in folder.glob("*.pt"))
    assert kept == (["checkpoint.pt", "last.pt"] if broken > 1 else [])
    for name in kept:
        weights = torch.load(folder / name)["objective"]["encoder.items.weight"]
        assert weights.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "epochs: "),
        (["--no-such-option"], "unrecognized arguments: --no-such-option (see --help)"),
        (["--epocs", "3"], "unrecognized arguments: --epocs 3; did you mean --epochs?"),
        (["--lr=0.1", "--maxlength", "9"], "unrecognized arguments: --lr=0.1"),
        (["--method", "gru4rec"], "method: "),
        (["--dataset", "{tmp}/missing.txt"], "missing.txt"),
        (["--config", "{tmp}/missing.toml"], "missing.toml"),
        (["--device", "abacus"], "device: 'abacus'"),
        (["--device", "meta"], "device: 'meta'"),
        (["--resume", "{tmp}/nothing"], "nothing: no run there"),
        (["--resume", "{tmp}/file"], "file: no run there"),
        (["--resume", "{tmp}", "--epochs", "3"], "--resume: "),
        (["--run-dir", "{tmp}/file/run"], "cannot be written"),
        (["--run-dir", "{tmp}/file"], "file: is a file; expected a new folder"),
        (["--k-core", "1000"], "k_core"),
        # More than a machine can address, so that none tries.
        (["--max-length", "2000000000", "--hidden-size", "200000"], "out of memory"),
        (["--threshold-network", "flattened", "--batch-size", "2000000"], "out of memory"),
        (["--threshold-network", "flattened", "--batch-size", "2000000000"], "out of memory"),
        (["--user-column", "name"], "walks.txt.gz: expected no --user-column"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments, message, log_file, tmp_path, monkeypatch, capsys
) -> None:
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    defaults = [] if "--resume" in arguments else ["--dataset", log_file]
    if "--run-dir" not in arguments and "--resume" not in arguments:
        defaults += ["--run-dir", tmp_path / "run"]
    with pytest.raises(SystemExit) as exit:
        call(train, monkeypatch, *defaults, *arguments)
    error = capsys.readouterr().err
    assert exit.value.code == 2
    assert message in error
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


def test_a_run_is_never_overwritten(log_file, tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "run"
    options = ["--dataset", log_file, "--run-dir", folder, "--epochs", 1, *SMALL]
    call(train, monkeypatch, *options)
    before = (folder / "checkpoint.pt").read_bytes()
    with pytest.raises(SystemExit) as exit:
        call(train, monkeypatch, *options)
    assert exit.value.code == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (folder / "checkpoint.pt").read_bytes() == before


def test_the_figures_of_a_run_alone_are_not_taken_for_one_to_go_on(
    log_file, tmp_path, monkeypatch, capsys
) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(SystemExit) as exit:
        call(train, monkeypatch, "--dataset", log_file, "--run-dir", tmp_path, *SMALL)
    assert exit.value.code == 2
    assert "holds a run already" in capsys.readouterr().err


def test_evaluate_refuses_what_is_no_run(log_file, tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1, *SMALL)
    cases = {"no run there": lambda: (folder / "config.toml").unlink()}
    cases["no such file"] = lambda: (folder / "checkpoint.pt").unlink()
    cases["not a readable checkpoint"] = lambda: (folder / "checkpoint.pt").write_bytes(b"PK")
    with gzip.open(log_file, "at") as file:
        print("user90 film1 film2 film3 film4 film5", file=file)
    for message, breaks in [("other data", lambda: None), *reversed(cases.items())]:
        breaks()
        with pytest.raises(SystemExit) as exit:
            call(evaluate, monkeypatch, folder)
        assert exit.value.code == 2
        assert message in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_data(log_file, tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1, *SMALL)
    (folder / "metrics.json").unlink()  # as a run cut off before the ranking
    with gzip.open(log_file, "at") as file:
        print("user90 film1 film2 film3 film4 film5", file=file)
    with pytest.raises(SystemExit) as exit:
        call(train, monkeypatch, "--resume", folder)
    assert exit.value.code == 2
    assert f"{folder / 'last.pt'}: trained on other data than {log_file}" in capsys.readouterr().err


def test_runs_as_a_module(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "arec.train", "--epochs", "0"],
        check=False, capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(train.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("python -m arec.train: error: epochs: ")
    assert not list(tmp_path.iterdir())


def test_a_file_name_that_is_no_text(log_file, tmp_path, monkeypatch, capsys) -> None:
    data = log_file.rename(tmp_path / "walks\udcff.txt.gz")
    with pytest.raises(SystemExit) as exit:
        call(train, monkeypatch, "--dataset", data, "--run-dir", tmp_path / "run", *SMALL)
    assert exit.value.code == 2
    assert "'\\udcff' cannot be written as utf-8" in capsys.readouterr().err
    data = data.rename(tmp_path / "walks.txt.gz")
    call(train, monkeypatch, "--dataset", data, "--run-dir", tmp_path / "run\udcff", "--epochs", 1,
         *SMALL)  # fmt: skip
    assert "run\\udcff" in (tmp_path / "run\udcff" / "train.log").read_text()


def test_recommend_names_new_items_in_order(log_file, tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 4, *SMALL)
    capsys.readouterr()
    call(recommend, monkeypatch, folder, "--top", 30, "--users", "user3", "user14")
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    with gzip.open(log_file, "rt") as file:
        histories = {line.split()[0]: set(line.split()[1:]) for line in file}
    films = {f"film{i}" for i in range(20)}
    for user in ("user3", "user14"):
        mine = [row for row in rows if row["user"] == user]
        assert {row["item"] for row in mine} == films - histories[user]
        assert [int(row["rank"]) for row in mine] == list(range(1, len(mine) + 1))
        scores = [float(row["score"]) for row in mine]
        assert scores == sorted(scores, reverse=True)

    call(recommend, monkeypatch, folder, "--top", 30, "--users", "nobody", "user14", "else",
         "user14")  # fmt: skip
    known, error = capsys.readouterr()
    expected = [row["item"] for row in mine]
    assert [row["item"] for row in csv.DictReader(known.splitlines())] == expected
    assert "no user 'nobody', 'else'" in error and error.count("\n") == 1
    with pytest.raises(SystemExit) as exit:
        call(recommend, monkeypatch, folder, "--users", "nobody")
    assert exit.value.code == 2
    nothing, error = capsys.readouterr()
    assert nothing == "" and "no user 'nobody'; there is, for example, 'user0'" in error


def test_unreadable_candidates_are_one_clear_error(log_file, tmp_path) -> None:
    split = checkpoint.load_data(train.Config(dataset=str(log_file)))
    path = tmp_path / "candidates.npz"
    for spoil in (
        lambda: path.write_bytes(b"PK"),
        lambda: np.savez(path, random=np.ones((3, 100))),
        lambda: np.savez(path, random=np.full((90, 100), 21)),
        lambda: np.savez(path, random=np.array(1)),
    ):
        spoil()
        with pytest.raises(checkpoint.RunError, match="candidates.npz: not readable candidates"):
            checkpoint.sampled_candidates(tmp_path, split, seed=0)


def test_settings_that_the_method_does_not_use_are_named(
    log_file, tmp_path, monkeypatch, capsys
) -> None:
    recipe, folder = tmp_path / "mine.toml", tmp_path / "run"
    recipe.write_text('method = "sasrec"\nquantile = 0.8\n')
    call(train, monkeypatch, "--config", recipe, "--dataset", log_file, "--run-dir", folder,
         "--lambda-cl", 0.2, "--epochs", 1, *SMALL)  # fmt: skip
    assert "sasrec does not use lambda_cl, quantile\n" in capsys.readouterr().err
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    call(train, monkeypatch, "--resume", folder)
    table, said = capsys.readouterr()
    assert "does not use" not in said
    assert "finished already" in said and "test (filtered)" in table
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("found_by", ["path", "file", "option", "environment"])
def test_a_run_is_evaluated_from_any_folder_and_shell(
    log_file, tmp_path, monkeypatch, capsys, found_by
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--dataset", log_file.name]
    if found_by == "file":
        (tmp_path / "settings").mkdir()
        (tmp_path / "settings/mine.toml").write_text(f'dataset = "../{log_file.name}"')
        data = ["--config", "settings/mine.toml"]
    elif found_by != "path":
        log_file.rename(tmp_path / "ml-1m.txt.gz")
        data = ["--dataset", "ml-1m"]
    if found_by == "option":
        data += ["--data-dir", "."]
    with monkeypatch.context() as shell:
        if found_by == "environment":
            shell.setenv("AREC_DATA_DIR", ".")
        call(train, shell, *data, "--run-dir", "run", "--epochs", 1, *SMALL)
    monkeypatch.setenv("AREC_DATA_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    call(evaluate, monkeypatch, tmp_path / "moved")
    assert "test (filtered)" in capsys.readouterr().out
    call(train, monkeypatch, "--resume", tmp_path / "moved")
    assert "test (filtered)" in capsys.readouterr().out


@pytest.mark.parametrize(("fewest", "said"), [(100, False), (99, True)])
def test_the_legend_says_when_there_are_too_few_items_to_draw(fewest: int, said: bool) -> None:
    candidates = np.arange(1, 101) * (np.arange(100) < [[100], [fewest]])
    table = format_results({}, {"random-100": candidates})
    assert (f"some users leave only {fewest} items" in table) is said


def test_a_checkpoint_of_other_settings_is_one_clear_error(
    log_file, tmp_path, monkeypatch, capsys
) -> None:
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1, *SMALL)
    toml = (folder / "config.toml").read_text()

    def change_settings() -> None:
        (folder / "config.toml").write_text(toml.replace("hidden_size = 16", "hidden_size = 32"))

    def change_checkpoints() -> None:
        for name in ("checkpoint.pt", "last.pt"):
            torch.save([1], folder / name)

    for breaks in (change_settings, change_checkpoints):
        breaks()
        for arguments in ([evaluate, folder], [recommend, folder], [train, "--resume", folder]):
            capsys.readouterr()
            with pytest.raises(SystemExit) as exit:
                call(arguments[0], monkeypatch, *arguments[1:])
            assert exit.value.code == 2
            assert "does not fit the settings of config.toml" in capsys.readouterr().err


@pytest.mark.parametrize("simthres, warns", [("learnable", True), ("row", False)])
def test_a_simthres_that_never_came_down_is_said(
    log_file, tmp_path, monkeypatch, capsys, simthres, warns
) -> None:
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", tmp_path / "run", "--epochs", 3,
         "--views", "su", "--simthres", simthres, *SMALL)  # fmt: skip
    assert ("SimThres stayed above" in capsys.readouterr().err) == warns


@pytest.mark.parametrize("limit", [0.0, 1e-3])
def test_gradients_have_the_norm_that_is_allowed(log_file, tmp_path, monkeypatch, limit) -> None:
    norms = []
    step = torch.optim.AdamW.step

    def recorded(self, *args, **kwargs):
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(grads).item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", tmp_path / "run", "--epochs", 1,
         "--gradient-clip", limit, *SMALL)  # fmt: skip
    if limit:
        assert norms == pytest.approx([limit] * len(norms), rel=1e-2)
    else:
        assert min(norms) > 1e-2
