"""The programs as a person runs them, on small data."""

from __future__ import annotations

import errno
import fcntl
import gzip
import json
import logging
import os
import re
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import SMALL, call

from arec import checkpoint, evaluate, recommend, runs, train
from arec.config import Config
from arec.errors import ConfigError, DataError, RunError
from arec.ranking import draw_candidates
from arec.train import _default_folder
from arec.trainer import Trainer
from arec_kernels import registration


@pytest.mark.parametrize("views", ["us_x", "cl4srec"])
def test_train_then_evaluate_repeats_the_figures(
    log_file, tmp_path, monkeypatch, capsys, views
) -> None:
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 6,
         "--views", views, *SMALL)  # fmt: skip
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
    assert "fewer than 100 items are left" in table, "of 20 items nobody has 100 left"

    call(evaluate, monkeypatch, folder)
    assert capsys.readouterr().out == table, "to the last digit"
    assert (folder / "candidates.npz").read_bytes() == candidates, "drawn once"


@pytest.mark.parametrize("own", [False, True])
def test_every_line_is_shown_once(log_file, tmp_path, monkeypatch, capsys, own) -> None:
    handlers = [logging.StreamHandler(sys.stderr)] if own else []
    monkeypatch.setattr(logging.getLogger(), "handlers", handlers)
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", tmp_path / "run", "--epochs", 1, *SMALL)
    assert capsys.readouterr().err == (tmp_path / "run/train.log").read_text()
    assert logging.getLogger().handlers == handlers


def test_a_run_is_trained_by_one_process(log_file, tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1, *SMALL)
    (folder / "metrics.json").unlink()
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    new = tmp_path / "new"
    new.mkdir()
    for arguments in (["--resume", folder], ["--dataset", log_file, "--run-dir", new, *SMALL]):
        theirs = os.open(arguments[-1] if arguments[0] == "--resume" else new, os.O_RDONLY)
        fcntl.flock(theirs, fcntl.LOCK_EX)
        with pytest.raises(SystemExit) as exit:
            call(train, monkeypatch, *arguments)
        os.close(theirs)
        assert exit.value.code == 2
        assert capsys.readouterr().err.endswith(": another process is training this run\n")
    assert {path: path.read_bytes() for path in folder.iterdir()} == kept
    assert not any(new.iterdir())
    call(train, monkeypatch, "--resume", folder)
    assert (folder / "metrics.json").exists(), "the lock went with its holder"


def test_a_folder_that_cannot_be_made_is_said_before_reading(tmp_path, refused) -> None:
    (tmp_path / "file").touch()
    missing, folder = tmp_path / "missing.csv", tmp_path / "file/run"
    error = refused(train, "--dataset", missing, "--run-dir", folder)
    assert "file/run: cannot be written: Not a directory" in error


def test_a_file_system_without_locks_is_no_obstacle(log_file, tmp_path, monkeypatch) -> None:
    def flock(file, operation) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", tmp_path / "run", "--epochs", 1, *SMALL)
    assert (tmp_path / "run/metrics.json").exists()


def test_a_wrong_device_is_said_before_minutes_of_reading(tmp_path, monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit):
        call(train, monkeypatch, "--dataset", tmp_path / "missing.csv", "--device", "tpu")
    assert "device: expected auto, cpu or cuda, got 'tpu'" in capsys.readouterr().err


@pytest.mark.parametrize(("patience", "said"), [(0.0, True), (60.0, False)])
def test_long_reading_is_said(tmp_path, monkeypatch, capsys, patience, said) -> None:
    monkeypatch.setattr(checkpoint, "_LONG", patience)

    def load(dataset, **settings):
        for thread in threading.enumerate():
            if said and isinstance(thread, threading.Timer):
                thread.join(timeout=60)
        raise DataError("broken")

    monkeypatch.setattr(checkpoint, "load", load)
    with pytest.raises(DataError):
        checkpoint.load_data(Config(dataset="my.csv"))
    assert capsys.readouterr().err == "reading my.csv\n" * said


def test_one_user(tmp_path, monkeypatch, capsys) -> None:
    """Nothing to contrast with: figures that do not exist are left out, not NaN."""
    folder, log_file = tmp_path / "run", tmp_path / "one.txt"
    log_file.write_bytes(b"user a b a c b a d\r\n")
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1,
         "--k-core", 1, *SMALL)  # fmt: skip
    assert "SimThres" not in capsys.readouterr().out
    assert "NaN" not in (folder / "metrics.json").read_text()
    assert "NaN" not in (folder / "log.jsonl").read_text()
    record = json.loads((folder / "log.jsonl").read_text())
    assert "alignment" in record and "uniformity" not in record


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("u1 a b c\nu2 b c a\nu3 c a b\n", "no user has 2 items to train with"),
        ("u1 a a a a\nu2 a a a a\n", "expected at least 2 items, got 1"),
    ],
)
def test_nothing_to_train_on_leaves_nothing_behind(tmp_path, text, message, refused) -> None:
    folder, log_file = tmp_path / "run", tmp_path / "log.txt"
    log_file.write_text(text)
    error = refused(train, "--dataset", log_file, "--run-dir", folder, "--k-core", 1, *SMALL)
    assert message in error
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "epochs: "),
        (["--no-such-option"], "unrecognized arguments: --no-such-option (see --help)"),
        (["--epocs", "3"], "unrecognized arguments: --epocs 3; did you mean --epochs?"),
        (["--lr=0.1", "--maxlength", "9"], "unrecognized arguments: --lr=0.1"),
        (["--method", "no-such-method"], "method: "),
        (["--dataset", "{tmp}/missing.txt"], "missing.txt"),
        (["--config", "{tmp}/missing.toml"], "missing.toml"),
        (["--device", "meta"], "device: expected"),
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
    arguments, message, log_file, tmp_path, refused
) -> None:
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    defaults = [] if "--resume" in arguments else ["--dataset", log_file]
    if "--run-dir" not in arguments and "--resume" not in arguments:
        defaults += ["--run-dir", tmp_path / "run"]
    error = refused(train, *defaults, *arguments)
    assert message in error
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


def test_a_run_is_never_overwritten(log_file, tmp_path, monkeypatch, refused) -> None:
    folder = tmp_path / "run"
    options = ["--dataset", log_file, "--run-dir", folder, "--epochs", 1, *SMALL]
    call(train, monkeypatch, *options)
    before = (folder / "checkpoint.pt").read_bytes()
    assert "holds a run already" in refused(train, *options)
    assert (folder / "checkpoint.pt").read_bytes() == before


def test_a_folder_of_other_files_is_refused_before_training(
    log_file, tmp_path, monkeypatch, refused
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "train.log").write_text("mine")
    options = ["--dataset", log_file, "--epochs", 1, *SMALL]
    error = refused(train, *options, "--run-dir", folder)
    assert "mine: holds other files; expected a new or an empty folder" in error
    assert [path.read_text() for path in folder.iterdir()] == ["mine"]
    (folder / "train.log").unlink()
    call(train, monkeypatch, *options, "--run-dir", folder)
    assert (folder / "metrics.json").is_file()


def test_what_a_killed_process_left_is_no_obstacle(log_file, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".config.toml.123", ".last.pt.123"):
        (folder / name).write_text("half")
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1, *SMALL)
    assert {path.name for path in folder.iterdir()} == set(checkpoint.RUN_FILES)


def test_a_log_file_that_cannot_be_written_is_said_once(capsys) -> None:
    handler = train._LogFile("/dev/full")
    for message in ("one", "two"):
        handler.emit(logging.LogRecord("arec", logging.INFO, "", 0, message, None, None))
    handler.close()
    said = capsys.readouterr().err
    assert said == "/dev/full: cannot be written: [Errno 28] No space left on device\n"


def test_sampled_candidates_are_for_the_test_items_and_of_the_run_s_seed(
    log_file, tmp_path, monkeypatch
) -> None:
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1,
         "--seed", 5, *SMALL)  # fmt: skip
    split = checkpoint.load_data(checkpoint.read_config(folder))
    with np.load(folder / "candidates.npz") as drawn:
        np.testing.assert_equal(dict(drawn), draw_candidates(split, "test", 5))
        assert not np.array_equal(drawn["random-100"], draw_candidates(split, "test", 6)["random-100"])


def test_the_figures_of_a_run_alone_are_not_taken_for_one_to_go_on(
    log_file, tmp_path, refused
) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    error = refused(train, "--dataset", log_file, "--run-dir", tmp_path, *SMALL)
    assert "holds a run already" in error


def test_a_run_does_not_go_on_with_other_data(log_file, tmp_path, monkeypatch, refused) -> None:
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1, *SMALL)
    (folder / "metrics.json").unlink()  # as a run cut off before the ranking
    with gzip.open(log_file, "at") as file:
        print("user90 film1 film2 film3 film4 film5", file=file)
    error = refused(train, "--resume", folder)
    assert f"{folder / 'last.pt'}: trained on other data than {log_file}" in error


def test_settings_that_were_edited_since_are_not_used(log_file, tmp_path, monkeypatch, refused) -> None:
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1, *SMALL)
    config = checkpoint.read_config(folder)
    moved = log_file.rename(tmp_path / "moved.txt.gz")
    free = config.model_copy(update={"dataset": str(moved)})
    (folder / "config.toml").write_text(free.to_toml())
    call(evaluate, monkeypatch, folder)
    (folder / "config.toml").write_text(free.model_copy(update={"heads": 1}).to_toml())
    for program, name in ((evaluate, "checkpoint.pt"), (recommend, "checkpoint.pt"), (train, "last.pt")):
        (folder / "metrics.json").unlink(missing_ok=True)  # as a run cut off before the ranking
        resume = ["--resume"] if program is train else []
        error = refused(program, *resume, folder)
        assert f"{folder / name}: trained with heads 2, got 1 from {folder / 'config.toml'}" in error


def test_runs_as_a_module(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "arec.train", "--epochs", "0"],
        check=False, capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(train.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("python -m arec.train: error: epochs: ")
    assert not list(tmp_path.iterdir())


def test_a_file_name_that_is_no_text(log_file, tmp_path, monkeypatch, refused) -> None:
    data = log_file.rename(tmp_path / "walks\udcff.txt.gz")
    error = refused(train, "--dataset", data, "--run-dir", tmp_path / "run", *SMALL)
    assert "'\\udcff' cannot be written as utf-8" in error
    data = data.rename(tmp_path / "walks.txt.gz")
    call(train, monkeypatch, "--dataset", data, "--run-dir", tmp_path / "run\udcff", "--epochs", 1,
         *SMALL)  # fmt: skip
    assert "run\\udcff" in (tmp_path / "run\udcff" / "train.log").read_text()


def test_settings_without_effect_are_named(
    log_file, tmp_path, monkeypatch, capsys
) -> None:
    recipe, folder = tmp_path / "mine.toml", tmp_path / "run"
    recipe.write_text('method = "sasrec"\nquantile = 0.8\n')
    call(train, monkeypatch, "--config", recipe, "--dataset", log_file, "--run-dir", folder,
         "--lambda-cl", 0.2, "--epochs", 1, *SMALL)  # fmt: skip
    assert "without effect in this run: lambda_cl, quantile\n" in capsys.readouterr().err
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    call(train, monkeypatch, "--resume", folder)
    table, said = capsys.readouterr()
    assert "without effect" not in said
    assert "finished already" in said and "test (filtered)" in table
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], ["InfoNCE; train more steps"]),
        (["--no-positives"], ["InfoNCE; train more steps"]),
        (["--lambda-reg", 0], ["no gradient reaches SimThres", "InfoNCE; take --simthres row"]),
        (["--simthres", "row"], []),
    ],
)
def test_a_simthres_that_never_came_down_is_said(
    log_file, tmp_path, monkeypatch, capsys, options, said
) -> None:
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", tmp_path / "run", "--epochs", 3,
         "--views", "su", *options, *SMALL)  # fmt: skip
    error = capsys.readouterr().err
    assert all(words in error for words in said)
    assert ("SimThres stayed above" in error) == bool(said)
    assert ("no gradient reaches SimThres" in error) == (len(said) == 2)


@pytest.mark.parametrize(("method", "said"), [("sasrec", 0), ("duorec", 1)])
def test_missing_kernels_are_said_where_they_would_run(
    log_file, tmp_path, monkeypatch, capsys, method, said
) -> None:
    monkeypatch.setitem(registration.EXTENSION_ERRORS, "cpp", "no compiler")
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", tmp_path / "run", "--epochs", 1,
         "--method", method, *SMALL)  # fmt: skip
    assert capsys.readouterr().err.count("no compiled kernels: no compiler") == said


def test_repeated_test_items_are_said(tmp_path, monkeypatch, capsys) -> None:
    log_file = tmp_path / "again.txt"
    log_file.write_text("".join(f"user{u} a b c d {'a' if u < 3 else 'e'}\n" for u in range(6)))
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1, *SMALL,
         "--k-core", 1, "--method", "sasrec")  # fmt: skip
    assert "50% of the test items are in their user's history already" in capsys.readouterr().err


def test_what_the_k_core_leaves_out_is_said(tmp_path, monkeypatch, capsys) -> None:
    log_file = tmp_path / "log.csv"
    rows = [f"{user},{item},7" for user in range(6) for item in "abcde"] + ["rare,f,7"]
    log_file.write_text("\n".join(["user,item,timestamp", *rows]))
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", tmp_path / "run", "--epochs", 1,
         "--method", "sasrec", "--validation-users", 2, *SMALL)  # fmt: skip
    said = capsys.readouterr().err
    assert "log.csv: 6 users, 5 items, 30 interactions\n" in said
    assert "before the 5-core: 7 users, 6 items, 31 interactions\n" in said
    assert "each epoch ranks for 2 of 6 users\n" in said
    assert "all interactions of a user have the same time" in said


def test_another_run_s_folder_is_refused_in_python_too(log_file, tmp_path) -> None:
    settings = {"dataset": str(log_file), "epochs": 1, "hidden_size": 16, "method": "sasrec"}
    metrics = train.train(Config(**settings), tmp_path / "run")
    log_file.unlink()  # what is kept needs no data
    assert train.train(Config(**settings), tmp_path / "run") == metrics
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == metrics
    with pytest.raises(RunError, match="holds a run with dropout 0.2, expected 0.5"):
        train.train(Config(**settings, dropout=0.5), tmp_path / "run")


def test_the_home_folder_may_be_a_tilde(log_file, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = Config(dataset=str(log_file), epochs=1, method="sasrec", hidden_size=16)
    metrics = train.train(config, "~/run")
    assert evaluate.evaluate_run("~/run", "~/ranks.csv")["test"] == metrics["test"]
    assert runs.read_metrics("~/run") == metrics and runs.read_run("~/run").metrics == metrics
    call(train, monkeypatch, "--resume=~/run")
    call(recommend, monkeypatch, "~/run", "--top", 1)
    assert {path.name for path in tmp_path.iterdir()} >= {"run", "ranks.csv"}
    assert not (tmp_path / "~").exists()


def test_settings_that_are_no_config_are_one_clear_error(tmp_path) -> None:
    with pytest.raises(ConfigError, match="^config: expected a Config, as Config.from_settings makes it, got {}"):
        train.train({}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_minutes_are_those_of_the_log(log_file, tmp_path, monkeypatch) -> None:
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", tmp_path / "run", "--epochs", 2,
         "--method", "sasrec", *SMALL)  # fmt: skip
    log = (tmp_path / "run/log.jsonl").read_text().splitlines()
    seconds = sum(json.loads(line)["seconds"] for line in log)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["minutes"] == pytest.approx(seconds / 60)


def test_what_is_odd_about_the_data_is_said(tmp_path, monkeypatch, capsys) -> None:
    log_file = tmp_path / "log.csv"
    # Of 4 interactions that follow another of the same user, 1 has the time of the one before.
    rows = [f"u{user},{item},{max(at, 1)}" for user in range(6) for at, item in enumerate("abcde")]
    log_file.write_text("\n".join(["user,item,timestamp", *rows, "short,a,1", "short,b,2"]))
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", tmp_path / "run", "--epochs", 1,
         "--method", "sasrec", "--k-core", 1, *SMALL)  # fmt: skip
    said = capsys.readouterr().err
    assert "24% of the interactions have the same time as the one before" in said  # 6 of 25
    assert "1 users have fewer than 3 items" in said


def test_the_default_folder_is_under_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program", "--dataset", "/data/my.csv", "--method", "sasrec"])
    _, folder = train._settings_and_folder()
    assert folder.parent == Path("runs") and folder.name.startswith("my.csv-sasrec-2")


def test_trainings_that_start_in_one_second_have_folders_of_their_own(
    tmp_path, monkeypatch, capsys, refused
) -> None:
    monkeypatch.chdir(tmp_path)

    class Still(datetime):
        @classmethod
        def now(cls) -> datetime:
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(train, "datetime", Still)
    for number in ("", "-2", "-3"):
        folder = _default_folder(Config(method="sasrec"))
        assert folder == Path(f"runs/builtin-sasrec-20260102-030405{number}") and folder.is_dir()
    for wrong in (["--device", "cuda:99"], ["--dataset", "nowhere.csv"]):
        with pytest.raises(SystemExit):
            call(train, monkeypatch, *wrong)
    assert len(list((tmp_path / "runs").iterdir())) == 3, "what cannot be trained leaves nothing behind"
    capsys.readouterr()
    (tmp_path / "runs").rename(tmp_path / "old")
    (tmp_path / "runs").touch()
    assert "cannot be written: Not a directory" in refused(train, "--method", "sasrec")


def test_a_program_that_trains_keeps_its_random_numbers_and_its_log_level(
    log_file, tmp_path, capsys
) -> None:
    config = Config(dataset=log_file, epochs=1, hidden_size=8, feed_forward=8)  # a path
    torch.manual_seed(5)
    logging.getLogger("arec").setLevel(logging.WARNING)
    try:
        train.train(config, tmp_path / "one")
        train.train(config.model_copy(update={"seed": 1}), tmp_path / "two")
    finally:
        logging.getLogger("arec").setLevel(logging.NOTSET)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert "ranking for" not in capsys.readouterr().err


def test_one_epoch_with_positives_is_enough(log_file, tmp_path, monkeypatch, capsys) -> None:
    fit = Trainer.fit

    def came_down(self):
        records = fit(self)
        for record, positives in zip(records, (0.0, 5.0), strict=True):
            record["positives_per_row"] = positives
        return records

    monkeypatch.setattr(Trainer, "fit", came_down)
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", tmp_path / "run", "--epochs", 2, *SMALL)
    assert "SimThres stayed above" not in capsys.readouterr().err
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["most_positives_per_row"] == 5


@pytest.mark.parametrize("option", [["--run-dir", "new"], ["--config", "new.toml"]])
def test_resume_goes_alone(tmp_path, monkeypatch, capsys, option) -> None:
    with pytest.raises(SystemExit):
        call(train, monkeypatch, "--resume", tmp_path, *option)
    assert "--resume: the run brings its own settings" in capsys.readouterr().err


def test_a_run_goes_on_where_the_command_line_says(log_file, tmp_path, monkeypatch, refused) -> None:
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1, *SMALL)
    (folder / "metrics.json").unlink()  # as a run cut off before the ranking
    assert "device: " in refused(train, "--resume", folder, "--device", "nowhere")
    assert "device: " in refused(evaluate, folder, "--device", "nowhere")
    assert "device: " in refused(recommend, folder, "--device", "nowhere")
    call(train, monkeypatch, "--resume", folder, "--device", "cpu")
    assert checkpoint.read_config(folder).device == "auto", "its own stay as they were"
    call(evaluate, monkeypatch, folder, "--device", "cpu")


def test_a_logger_that_shows_less_makes_it_quiet(log_file, tmp_path, monkeypatch, capsys) -> None:
    log = logging.getLogger("arec")
    log.setLevel(logging.WARNING)
    config = Config.from_settings({"dataset": str(log_file), "method": "sasrec", "epochs": 1, "hidden_size": 16})
    try:
        for _ in range(2):
            train.train(config, tmp_path / "run")
    finally:
        log.setLevel(logging.NOTSET)
    assert capsys.readouterr().err == ""
