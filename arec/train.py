"""``python -m arec.train``: train one method on one data set, rank, and keep the run.

``torchrun --nproc-per-node 4 -m arec.train`` does the same with four processes, see :mod:`arec.parallel`.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from arec import parallel
from arec.checkpoint import (
    BEST,
    CANDIDATES,
    CONFIG,
    LAST,
    MESSAGES,
    METRICS,
    RUN_FILES,
    is_finished,
    load_data,
    located,
    read_config,
    sampled_candidates,
)
from arec.cli import Parser, add_settings, given_settings, run_program
from arec.config import PLACES, RECIPE_NAMES, Config
from arec.device import pick_device, random_numbers_kept
from arec.errors import ConfigError, RunError
from arec.files import remove_half_written, user_path, write_json, write_text
from arec.results import final_metrics, format_results
from arec.runs import read_metrics
from arec.scoring import evaluate_model
from arec.tables import FEWEST_ABOVE
from arec.trainer import Trainer
from arec_kernels.registration import EXTENSION_ERRORS

log = logging.getLogger("arec")


def parse_arguments() -> argparse.Namespace:
    parser = Parser("arec.train", "Train a sequential recommender and rank it on the test items.")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"TOML file of settings, or the name of a recipe: {RECIPE_NAMES}",
    )
    parser.add_argument(
        "--run-dir", type=user_path, metavar="DIR", help="new folder of the run; default under runs/"
    )
    parser.add_argument(
        "--resume", type=user_path, metavar="RUN", help="go on with an interrupted run, as it was set"
    )
    add_settings(parser)
    parsed = parser.parse_args()
    if parsed.resume and (parsed.config or parsed.run_dir or given_settings(parsed).keys() - PLACES):
        parser.error("--resume: the run brings its own settings; expected only --data-dir or --device beside it")
    return parsed


def main() -> None:
    with parallel.joined():
        metrics = train(*parallel.from_main(_settings_and_folder))
        if parallel.is_main():
            print(format_results(metrics))


def _settings_and_folder() -> tuple[Config, Path]:
    arguments = parse_arguments()
    if arguments.resume:
        folder = arguments.resume
        config = read_config(folder, given_settings(arguments))
    else:
        config = Config.from_settings(given_settings(arguments), arguments.config)
        folder = arguments.run_dir or _default_folder(config)
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder}: is a file; expected a new folder for the run")
        if any((folder / name).exists() for name in (CONFIG, BEST, LAST, METRICS)):
            raise RunError(f"{folder}: holds a run already; expected a new folder, or --resume")
    return config, folder


def train(config: Config, folder: str | Path) -> dict[str, Any]:
    """Train in a run folder, from the start or on from where it was cut off, and rank.

    Called again with the same settings and folder it goes on with a training that was interrupted, and
    only reads one that has finished. The library's way to a folder that `arec.evaluate`,
    `arec.recommend` and `arec.report` read. A sweep::

        for rate in (1e-3, 2e-3, 4e-3):
            config = Config.from_settings({"learning_rate": rate})
            metrics = train(config, f"runs/rate-{rate}")
            print(rate, metrics["valid"]["filtered"]["NDCG@10"])  # to choose by

    ``logging.getLogger("arec").setLevel(logging.WARNING)`` before it makes it quiet.

    Returns:
        What ``metrics.json`` in the folder holds: the figures of :func:`arec.results.final_metrics`,
        those of validation, ``valid`` (without sampled candidates and lists), and how the run was made.
        :func:`arec.results.format_results` makes a table of it.

    Raises:
        RunError: the folder holds a run of other settings, or files of no run; the training broke.
        ConfigError: the settings that the folder holds are not valid, or `config` is none.
        DataError: the data cannot be had or are not as they have to be.
    """
    if not isinstance(config, Config):
        raise ConfigError(f"config: expected a Config, as Config.from_settings makes it, got {config!r}")
    config, folder = located(config), user_path(folder)
    if parallel.from_main(lambda: is_finished(folder, config)):
        parallel.say(f"{folder}: finished already, training nothing")
        return parallel.from_main(lambda: read_metrics(folder))
    with _alone_in(folder):
        device = pick_device(config.device)  # says what is wrong with it, before minutes of reading
        with random_numbers_kept(device):
            return _train(config, folder)


def _train(config: Config, folder: Path) -> dict[str, Any]:
    # Without a state there is nothing to go on from but its settings.
    started = parallel.from_main((folder / LAST).exists)
    # Before anything is written: what cannot be loaded or built leaves nothing behind.
    new = parallel.from_main(lambda: _is_new(folder))
    trainer = Trainer(config, load_data(config, None if new else folder), folder, resume=started)
    if new:
        parallel.from_main(lambda: write_text(folder / CONFIG, config.to_toml()))
    with _logging_to(folder / MESSAGES) as shown, logging_redirect_tqdm([shown]):
        if new and config.unused:
            log.warning("without effect in this run: %s", ", ".join(config.unused))
        try:
            return _fit_and_rank(trainer)
        except KeyboardInterrupt:
            log.info("interrupted after %s; python -m arec.train --resume %s goes on", trainer.progress(), folder)
            raise


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No other process trains in the folder meanwhile, which goes if it stays empty."""
    lock = parallel.from_main(lambda: _locked(folder))
    try:
        yield
    finally:
        if parallel.is_main():
            os.close(lock)
            with suppress(OSError):
                folder.rmdir()


def _locked(folder: Path) -> int:
    """The descriptor that locks the folder until it is closed; what killed trainings left half-written there goes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise RunError(f"{folder}: another process is training this run") from None
    except OSError:
        return lock  # a file system without locks
    # Sampled candidates an evaluation may be writing.
    remove_half_written(*(folder / name for name in RUN_FILES if name != CANDIDATES))
    return lock


def _is_new(folder: Path) -> bool:
    if (folder / CONFIG).is_file():
        return False
    if folder.is_dir() and any(folder.iterdir()):
        raise RunError(f"{folder}: holds other files; expected a new or an empty folder for the run")
    return True


def _log_data(trainer: Trainer) -> None:
    """What is trained on, and what of it surprises."""
    config, split = trainer.config, trainer.split
    sequences = split.sequences
    sizes = (sequences.num_users, sequences.num_items, sequences.num_interactions)
    log.info("%s: %d users, %d items, %d interactions", sequences.name, *sizes)
    if sequences.in_log not in (None, sizes):
        log.info(
            "before the %d-core: %d users, %d items, %d interactions",
            config.k_core,
            *sequences.in_log,
        )
    if split.num_train_only:
        log.info(
            "%d users have fewer than 3 items: those with 2 are trained on, none is ranked",
            split.num_train_only,
        )
    if (validating := len(trainer.valid_split.eval_users)) < len(split.eval_users):
        log.info("each epoch ranks for %d of %d users", validating, len(split.eval_users))
    if sequences.tied == 1:
        log.warning("all interactions of a user have the same time: is it the right column?")
    elif sequences.tied > 0.01:
        log.info(
            "%.0f%% of the interactions have the same time as the one before of the same user, and "
            "keep the order of the file; if the file sorts them alike for all users, for example by "
            "item, a model learns that order, and ranks too well",
            100 * sequences.tied,
        )
    if (repeated := split.repeated()) > 0.01:
        log.info(
            "%.0f%% of the test items are in their user's history already: ranked all the same, while "
            "arec.recommend never gives a user the same item again; lines that the file has twice are "
            "kept",
            100 * repeated,
        )


def _fit_and_rank(trainer: Trainer) -> dict[str, Any]:
    config, split, folder = trainer.config, trainer.split, trainer.run
    _log_data(trainer)
    log.info(
        "%s: %d parameters, on %s in %s%s; run folder %s",
        config.method,
        sum(parameter.numel() for parameter in trainer.objective.parameters()),
        trainer.device,
        trainer.precision,
        f", {parallel.count()} processes" if parallel.count() > 1 else "",
        folder,
    )
    if config.contrastive and trainer.device.type == "cpu" and "cpp" in EXTENSION_ERRORS:
        log.warning(
            "the contrastive loss takes PyTorch's time and memory, for it has no compiled kernels: %s",
            EXTENSION_ERRORS["cpp"],
        )
    if config.threshold_stays:
        log.warning(
            "no gradient reaches SimThres without lambda_reg or threshold_grad: it stays where it starts"
        )
    records = trainer.fit()
    above = {}
    if config.has_simthres:
        what = "positives" if config.positives else "masked"
        # A run that goes on may have begun before masked pairs were counted.
        most = max(record.get(f"{what}_per_row", 0.0) for record in records)
        above[f"most_{what}_per_row"] = most
        if most < FEWEST_ABOVE:
            steps = "" if config.threshold_stays else "train more steps (--epochs, another --batch-size), or "
            log.warning(
                "SimThres stayed above the similarities, so the loss was InfoNCE; %stake --simthres row, "
                "which needs no training",
                steps,
            )
    trainer.restore_best()
    log.info("ranking for %d users", len(split.eval_users))
    candidates = parallel.scattered(lambda: sampled_candidates(folder, split, config.seed))
    if config.validation_users is None:
        valid = records[trainer.best_epoch - 1]["valid"]
    else:
        valid = evaluate_model(trainer.objective, split, "valid", lists=False)
    test = evaluate_model(trainer.objective, split, "test", candidates)
    metrics = {
        "config": config.model_dump(mode="json"),
        "data": trainer.data,
        "epochs": len(records),
        "best_epoch": trainer.best_epoch,
        "minutes": sum(record["seconds"] for record in records) / 60,
        "precision": trainer.precision,
        "threads": torch.get_num_threads(),
        "processes": parallel.count(),
        "torch": torch.__version__,
        **above,
        "valid": valid,
        **final_metrics(trainer.objective, split, candidates, test),
    }
    parallel.from_main(lambda: write_json(folder / METRICS, metrics))
    log.info("best epoch %d of %d; run folder %s", trainer.best_epoch, len(records), folder)
    return metrics


def _default_folder(config: Config) -> Path:
    """A new one, made at once: another training may start in the same second."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{Path(config.dataset).name}-{config.method}-{stamp}"
    for number in count(1):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"{folder}: cannot be written: {error.strerror}") from None
        return folder


class _LogFile(logging.FileHandler):
    """A log that goes on without its file where that can't be written any more, and says so once."""

    lost = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.lost:
            self.lost = True
            print(f"{self.baseFilename}: cannot be written: {sys.exc_info()[1]}", file=sys.stderr)

    def close(self) -> None:
        with suppress(OSError):  # what is left in its buffer
            super().close()


@contextmanager
def _logging_to(path: Path) -> Iterator[logging.Logger]:
    """Log to standard error and to a file, what the main process has to say.

    Yields:
        the logger that shows it to people: that of a program that has set up logging of its own.
    """
    if not parallel.is_main():
        log.disabled = True
        yield log
        log.disabled = False
        return
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    try:
        # A name of a file may hold bytes that are no text.
        to_file = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from None
    root = logging.getLogger()
    shown = root if root.handlers else log
    handlers: list[logging.Handler] = [to_file] if shown is root else [logging.StreamHandler(), to_file]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    try:
        yield shown
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


if __name__ == "__main__":
    run_program("arec.train", main)
