"""The paper's tables and figures again: what is missing is run, what is there stays."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from programs import call

from arec import checkpoint, reproduce, tables
from arec.checkpoint import located
from arec.config import Config
from arec.data.builtin import generate
from arec.errors import RunError
from arec.figures import FIGURES
from arec.files import write_text
from arec.runs import differing
from arec.trainer import Trainer

# A tiny form of the published recipes.
TINY = ["--hidden-size", "8", "--feed-forward", "8", "--max-length", "6", "--epochs", "1"]


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    """40 users who walk along a circle of 12 items."""
    rng = np.random.default_rng(0)
    path = tmp_path / "walks.txt"
    lines = []
    for user in range(40):
        start = rng.integers(12)
        walk = " ".join(f"film{(start + step) % 12}" for step in range(rng.integers(6, 12)))
        lines.append(f"user{user} {walk}\n")
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize(
    ("what", "datasets", "runs"),
    [("table1", ["ml-1m", "beauty"], 6), ("table2", ["ml-1m"], 6), ("figures", ["builtin"], 18)],
)
def test_what_is_run_without_a_data_set(monkeypatch, what, datasets, runs) -> None:
    monkeypatch.setattr(reproduce, "find_missing", list)
    monkeypatch.setattr(sys, "argv", ["program", what])
    _, _, plans, _, missing = reproduce.planned()
    assert [plan.dataset for plan in plans] == datasets
    assert len({folder for folder, _ in missing}) == runs


@pytest.mark.parametrize(("table", "cells"), [("table1", 3), ("table2", 6)])
def test_runs_what_is_missing_once(
    table, cells, log_file, tmp_path, monkeypatch, capsys
) -> None:
    runs = tmp_path / "runs"
    options = [table, "--dataset", log_file, "--runs-dir", runs, "--seeds", 2, *TINY]
    call(reproduce, monkeypatch, *options)
    text = capsys.readouterr().out
    assert text.startswith(f"## Table {table[-1]}, walks.txt\n")
    assert "over 2 seeds" in text and "epochs = 1" in text
    assert (runs / f"{table}-walks.txt.md").read_text() == text.removesuffix("\n")
    folders = sorted(path.parent for path in runs.glob("*/metrics.json"))
    assert len(folders) == 2 * cells
    written = {folder: (folder / "metrics.json").stat().st_mtime_ns for folder in folders}

    with open(runs / f"{table}-walks.txt.csv") as file:
        rows = list(csv.DictReader(file))
    row = next(row for row in rows if row["method"] == "duorec")
    figures = [
        json.loads((folder / "metrics.json").read_text())["test"][row["ranking"]][row["metric"]]
        for folder in folders
        if f"duorec-{'us_x' if table == 'table1' else 'su'}" in folder.name
    ]
    assert float(row["mean"]) == pytest.approx(np.mean(figures))
    assert float(row["deviation"]) == pytest.approx(abs(figures[0] - figures[1]) / np.sqrt(2))

    (folders[0] / "metrics.json").unlink()  # cut off after training, before ranking
    call(reproduce, monkeypatch, *options)
    assert capsys.readouterr().out == text, "a run gives the same figures again"
    now = {folder: (folder / "metrics.json").stat().st_mtime_ns for folder in folders}
    assert [folder for folder in folders if now[folder] != written[folder]] == folders[:1]


def test_goes_on_with_what_was_cut_off(log_file, tmp_path, monkeypatch, capsys) -> None:
    options = ["table1", "--dataset", log_file, *TINY, "--epochs", 2]
    call(reproduce, monkeypatch, *options, "--runs-dir", tmp_path / "whole")
    whole = capsys.readouterr().out
    epochs, original = [], Trainer._epoch

    def cut_off(self, epoch, bar):
        epochs.append(epoch)
        if len(epochs) in (2, 4):  # in the second epoch of the first run, the first of the second
            raise KeyboardInterrupt
        original(self, epoch, bar)

    monkeypatch.setattr(Trainer, "_epoch", cut_off)
    for _ in range(2):
        with pytest.raises(SystemExit) as exit:
            call(reproduce, monkeypatch, *options, "--runs-dir", tmp_path / "cut")
        assert exit.value.code == 130
    assert capsys.readouterr().out == ""
    call(reproduce, monkeypatch, *options, "--runs-dir", tmp_path / "cut")
    assert capsys.readouterr().out == whole
    assert epochs == [1, 2, 2, 1, 1, 2, 1, 2], "no epoch is trained twice"


def test_figures_share_their_runs(log_file, tmp_path, monkeypatch, capsys) -> None:
    runs = tmp_path / "runs"
    options = ["--dataset", log_file, "--runs-dir", runs, *TINY, "--seeds", 2]
    call(reproduce, monkeypatch, "figures", *options)
    drawn = {path.name: path for path in (runs / "figures-walks.txt").iterdir()}
    page = drawn.pop("README.md").read_text()
    assert {*drawn} == {*FIGURES} - {"false-negatives.png"}, "the truth about them is planted data's"
    assert all(f"]({name})" in page for name in drawn)
    assert "epochs = 1; one seed, in the sweep of the quantile 2." in page
    assert capsys.readouterr().out.count("wrote ") == len(drawn) + 1
    folders = {path.parent.name: path for path in runs.glob("*/metrics.json")}
    seed0 = [name for name in folders if name.endswith("seed0")]
    swept = [name for name in seed0 if "-quantile-" in name]
    assert len(swept) == 6 and len(seed0) == 7 + 6 + 3 + 3, (
        "methods on their views, quantiles, widths, Appendix A"
    )
    assert len(folders) == len(seed0) + 1 + 6, "further seeds are for the sweep"

    written = {path: path.stat().st_mtime_ns for path in folders.values()}
    call(reproduce, monkeypatch, "table1", *options)
    assert len([*runs.glob("*/metrics.json")]) == len(folders) + 2, "seed 1 of cl4srec and duorec"
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())


def test_the_built_in_data_take_the_default_settings() -> None:
    plan = reproduce.Plan("builtin", {"epochs": 3}, Path("runs"))
    folder, config = plan.run("adaptiverec", "us_x", 1, hidden_size=128, quantile=0.9)
    assert folder == Path("runs/builtin-adaptiverec-us_x-hidden_size-128-seed1")
    assert config == Config(epochs=3, hidden_size=128, seed=1, views="us_x", quantile=0.9)


@pytest.mark.parametrize("dataset", reproduce.PAPER)
def test_quick_takes_the_recipes_of_the_data_set(dataset) -> None:
    plan = reproduce.Plan(dataset, {"epochs": 3}, Path("runs"), quick=True)
    for (method, views), runs in plan.table(tables.TABLES["table1"], [7]).items():
        changes = {"epochs": 3, "seed": 7, "views": views}
        expected = located(Config.from_settings(changes, f"{method}-{dataset}"))
        assert runs[0][1] == expected


@pytest.mark.parametrize("dataset", reproduce.PAPER)
def test_faithful_tables_train_all_methods_with_one_file_of_settings(dataset) -> None:
    plan = reproduce.Plan(dataset, {}, Path("runs"))
    configs = [runs[0][1] for runs in plan.table(tables.TABLES["table1"], [0]).values()]
    assert {config.method for config in configs} == {"cl4srec", "duorec", "adaptiverec"}
    assert differing(configs, "method", "views") == []
    cl4srec = next(config for config in configs if config.method == "cl4srec")
    own = Config.from_settings({"dataset": dataset}, "cl4srec-ml-1m-published")
    assert not any(map(cl4srec.uses, differing([cl4srec, own])))


def test_says_how_the_runs_are_set_before_it_trains(
    log_file, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(reproduce, "train", lambda config, folder: sys.exit(3))
    with pytest.raises(SystemExit):
        call(reproduce, monkeypatch, "table1", "--dataset", log_file, "--runs-dir", tmp_path / "runs", *TINY)
    said = capsys.readouterr().err
    assert said.startswith("walks.txt: recipe `adaptiverec-ml-1m-published`, but ")
    assert "epochs = 1\nrun 1 of 3: " in said


def test_help_shows_its_own_options(monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit):
        call(reproduce, monkeypatch, "--help")
    text = capsys.readouterr().out
    assert re.findall(r"^  (?:-h, )?(--\S+)", text, re.MULTILINE) == [
        "--help", "--version", "--seeds", "--runs-dir", "--quick"
    ]  # fmt: skip
    assert "settings of arec.train (see its --help)" in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table3"], "table3"),
        (["table1", "--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (["table1", "--views", "un"], "--views: the table or figure says which"),
        (["table1", "--epochs", "0"], "epochs: "),
        (["table1", "--dataset", "{tmp}/nothing.txt"], "nothing.txt: no such file"),
        (["table1", "--quick", "--dataset", "my.csv"], "recipes for ml-1m and beauty only, got my.csv"),
        (["table1", "--data-dir", "{tmp}/nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, refused) -> None:
    runs = tmp_path / "runs"
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    error = refused(reproduce, *arguments, "--runs-dir", runs)
    assert message in error
    assert error.count("\n") == 1, error
    assert not runs.exists()


def test_a_run_with_other_settings_is_never_taken_for_ours(
    log_file, tmp_path, monkeypatch, capsys, refused
) -> None:
    options = ["table1", "--dataset", log_file, "--runs-dir", tmp_path / "runs", *TINY]
    call(reproduce, monkeypatch, *options)
    capsys.readouterr()
    error = refused(reproduce, *options, "--quantile", "0.8")
    assert "seed0: holds a run with quantile 0.9, expected 0.8" in error


def test_runs_of_other_data_are_never_taken_for_ours(
    log_file, tmp_path, monkeypatch, capsys, refused
) -> None:
    options = ["table1", "--dataset", log_file, "--runs-dir", tmp_path / "runs", *TINY]
    call(reproduce, monkeypatch, *options)
    capsys.readouterr()
    log_file.write_text(log_file.read_text() + "one-more film1 film2 film3 film4 film5\n")
    assert "trained on other data than" in refused(reproduce, *options)


def test_each_seed_has_built_in_data_of_its_own(tmp_path) -> None:
    runs = [(tmp_path / str(seed), Config(seed=seed)) for seed in (0, 1)]
    for folder, config in runs:
        write_text(folder / "config.toml", config.to_toml())
        write_text(folder / "metrics.json", "{}")
        data = checkpoint.fingerprint(generate(config.seed))
        checkpoint.save(folder / "checkpoint.pt", {"data": data})
    assert reproduce.find_missing(runs) == []


def test_a_damaged_run_is_one_clear_error(log_file, tmp_path, monkeypatch, refused) -> None:
    options = ["table1", "--dataset", log_file, "--runs-dir", tmp_path, *TINY]
    call(reproduce, monkeypatch, *options)
    run = next(tmp_path.glob("*duorec*seed0"))
    (run / "metrics.json").write_text("{}")
    assert "metrics.json, line 1: not as arec.train writes it (valid: Field required)" in refused(reproduce, *options)


def test_seeds_count_from_the_one_that_is_given(log_file, tmp_path, monkeypatch) -> None:
    trained = []
    monkeypatch.setattr(reproduce, "train_all", trained.extend)
    options = ["--dataset", log_file, "--seed", 3, "--seeds", 2, "--runs-dir", tmp_path]
    monkeypatch.setattr("sys.argv", ["program", "table1", *map(str, options)])
    with pytest.raises(RunError, match="no run there"):  # nothing has been trained
        reproduce.main()
    assert {config.seed for _, config in trained} == {3, 4}


def test_where_the_data_lie_is_no_setting_of_a_table() -> None:
    plan = reproduce.Plan("builtin", {"epochs": 3, "data_dir": "/home/me"}, Path("runs"))
    assert reproduce.describe(plan, {}) == "default settings, but epochs = 3"
