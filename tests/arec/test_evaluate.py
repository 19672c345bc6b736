"""Runs that are ranked again, wherever they lie and whatever is wrong with them."""

from __future__ import annotations

import gzip
import json

import numpy as np
import polars as pl
import pytest
import torch
from programs import SMALL, call

from arec import checkpoint, evaluate, recommend, scoring, train
from arec.errors import RunError
from arec.metrics import metrics_from_ranks
from arec.ranking import SAMPLED_PROTOCOLS


def test_evaluate_refuses_what_is_no_run(log_file, tmp_path, monkeypatch, refused) -> None:
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1, *SMALL)
    cases = {"no run there": lambda: (folder / "config.toml").unlink()}
    cases["checkpoint.pt: no such file; arec.train writes it"] = lambda: (folder / "checkpoint.pt").unlink()
    cases["the run has to be trained again"] = lambda: (folder / "checkpoint.pt").write_bytes(b"PK")
    cases["config.toml says where the data are"] = lambda: log_file.unlink()
    with gzip.open(log_file, "at") as file:
        print("user90 film1 film2 film3 film4 film5", file=file)
    for message, breaks in [("other data", lambda: None), *reversed(cases.items())]:
        breaks()
        assert message in refused(evaluate, folder)


def test_unreadable_candidates_are_one_clear_error(log_file, tmp_path) -> None:
    split = checkpoint.load_data(train.Config(dataset=str(log_file)))
    path = tmp_path / "candidates.npz"

    def keep(rows: np.ndarray, protocols: tuple[str, ...] = SAMPLED_PROTOCOLS) -> None:
        np.savez(path, **dict.fromkeys(protocols, rows))

    def write_npy(path) -> None:
        with open(path, "wb") as file:
            np.save(file, np.ones((90, 100), np.int32))

    for spoil in (
        lambda: path.write_bytes(b"PK"),
        lambda: keep(np.ones((3, 100), np.int32)),
        lambda: keep(np.full((90, 100), 21, np.int32)),
        lambda: keep(np.full((90, 100), -1, np.int32)),
        lambda: keep(np.ones((90, 100), bool)),
        lambda: keep(np.full((90, 100), "1")),
        lambda: keep(np.array(1, np.int32)),
        lambda: keep(np.ones((90, 100), np.int32), SAMPLED_PROTOCOLS[:1]),
        lambda: write_npy(path),
    ):
        spoil()
        with pytest.raises(RunError, match="candidates.npz: not readable candidates"):
            checkpoint.sampled_candidates(tmp_path, split, seed=0)


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


def test_ranks_of_users_are_those_of_the_metrics(
    log_file, tmp_path, monkeypatch, capsys, refused
) -> None:
    folder, file = tmp_path / "run", tmp_path / "new/ranks.csv"
    with gzip.open(log_file, "at") as log:
        print("somebody film1 film2", file=log)  # comes first, and is not ranked
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1, "--k-core", 1,
         *SMALL)  # fmt: skip
    call(evaluate, monkeypatch, folder, "--ranks", file)
    ranks = pl.read_csv(file)
    assert ranks["user"].to_list() == sorted(f"user{user}" for user in range(90))
    metrics = json.loads((folder / "metrics.json").read_text())["test"]
    assert ranks.columns == ["user", "history", *metrics]
    with gzip.open(log_file, "rt") as log:
        lengths = {user: len(items) for user, *items in map(str.split, log)}
    assert ranks["history"].to_list() == [lengths[user] - 1 for user in ranks["user"]]
    for protocol, figures in metrics.items():
        expected = metrics_from_ranks(ranks[protocol].to_numpy())
        assert expected == {name: pytest.approx(figures[name]) for name in expected}
    assert not ranks["filtered"].equals(ranks["unfiltered"])

    assert "ranks.csv: exists" in refused(evaluate, folder, "--ranks", file)
    assert pl.read_csv(file).equals(ranks)
    for own in ("metrics.json", "../run/config.toml"):
        before = (folder / own).read_text()
        with pytest.raises(RunError, match="is a file of the run"):
            evaluate.evaluate_run(str(folder), str(folder / own))
        assert (folder / own).read_text() == before
    capsys.readouterr()
    with monkeypatch.context() as early:
        early.setattr(evaluate, "load_run", None)  # said before anything is ranked
        assert "cannot be written" in refused(evaluate, folder, "--ranks", file / "ranks.csv")
        file.unlink()
        file.mkdir()
        assert "ranks.csv: exists" in refused(evaluate, folder, "--ranks", file)


def test_only_the_test_items_are_ranked(log_file, tmp_path, monkeypatch) -> None:
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", tmp_path / "run", "--epochs", 1, *SMALL)
    scored = []
    score = evaluate.score_batches
    for module in (evaluate, scoring):
        monkeypatch.setattr(
            module, "score_batches", lambda *args: scored.append(args[2]) or score(*args)
        )
    call(evaluate, monkeypatch, tmp_path / "run")
    assert scored == ["test"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is the device")
def test_a_device_that_is_not_here_is_named_with_the_settings(
    log_file, tmp_path, monkeypatch, refused
) -> None:
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", tmp_path / "run", "--epochs", 1, *SMALL)
    settings = tmp_path / "run/config.toml"
    settings.write_text(settings.read_text().replace('device = "auto"', 'device = "cuda"'))
    for program in (evaluate, recommend):
        said = refused(program, tmp_path / "run")
        assert "device: 'cuda' cannot be used here" in said
        assert 'set device = "auto" in ' in said
    assert evaluate.evaluate_run(tmp_path / "run", device="cpu")["test"]
    assert checkpoint.load_run(tmp_path / "run")[2].device.type == "cpu"


def test_a_checkpoint_of_other_settings_is_one_clear_error(
    log_file, tmp_path, monkeypatch, capsys, refused
) -> None:
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1, *SMALL)
    toml = (folder / "config.toml").read_text()

    def change_settings() -> str:
        (folder / "config.toml").write_text(toml.replace("hidden_size = 16", "hidden_size = 32"))
        return "trained with hidden_size 16, got 32 from"

    def change_checkpoints() -> str:
        for name in ("checkpoint.pt", "last.pt"):
            torch.save([1], folder / name)
        return "does not fit the settings of config.toml"

    (folder / "metrics.json").unlink()  # or there would be nothing to go on with
    for breaks in (change_settings, change_checkpoints):
        message = breaks()
        for arguments in ([evaluate, folder], [recommend, folder], [train, "--resume", folder]):
            capsys.readouterr()
            error = refused(arguments[0], *arguments[1:])
            assert message in error


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("objective", lambda weights: {key: value * torch.nan for key, value in weights.items()}),
        ("records", lambda records: [{"epoch": 1}]), ("best_epoch", lambda best: 9),
        ("step", lambda step: -1), ("step", lambda step: 10**9),
    ],
)  # fmt: skip
def test_a_state_of_broken_numbers_overwrites_nothing(
    log_file, tmp_path, monkeypatch, refused, name, broken
) -> None:
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1, *SMALL)
    (folder / "metrics.json").unlink()
    state = torch.load(folder / "last.pt")
    torch.save(state | {name: broken(state[name])}, folder / "last.pt")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "last.pt: does not fit the settings" in refused(train, "--resume", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_candidates_that_are_gone_are_drawn_again_alike(log_file, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1,
         "--method", "sasrec", "--seed", 5, *SMALL)  # fmt: skip
    with np.load(folder / "candidates.npz") as drawn:
        before = dict(drawn)
    (folder / "candidates.npz").unlink()
    call(evaluate, monkeypatch, folder)
    with np.load(folder / "candidates.npz") as drawn:
        np.testing.assert_equal(dict(drawn), before)
