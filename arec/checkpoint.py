"""Run folders: configuration, checkpoints and metrics, each written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import torch

from arec import parallel
from arec.config import PLACES, Config
from arec.data import absolute, load
from arec.data.interactions import Sequences
from arec.data.split import LeaveOneOut
from arec.device import pick_device
from arec.errors import DataNotFoundError, RunError
from arec.files import user_path, write_atomically, write_bytes
from arec.objectives import Objective, build_objective
from arec.ranking import SAMPLED, SAMPLED_PROTOCOLS, draw_candidates

CONFIG = "config.toml"
BEST = "checkpoint.pt"
LAST = "last.pt"
METRICS = "metrics.json"
LOG = "log.jsonl"
CANDIDATES = "candidates.npz"
MESSAGES = "train.log"
RUN_FILES = (CONFIG, BEST, LAST, METRICS, LOG, CANDIDATES, MESSAGES)
# Settings that a run may have changed since: where things are, and what the fingerprint of the data tells.
_FREE = PLACES | {"dataset", "user_column", "item_column", "time_column", "k_core"}
_LONG = 5.0  # seconds without a word


def save(path: Path, state: dict[str, Any]) -> None:
    # In memory first: PyTorch hides a full disk or a Ctrl-C under an error of its own.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getbuffer())


def read_config(run: str | Path, places: Mapping[str, Any] | None = None) -> Config:
    """The settings of a run.

    Args:
        places: what to take instead of its own.

    Raises:
        RunError: there is no run in the folder.
        ConfigError: its settings are not valid.
    """
    path = Path(run) / CONFIG
    if not path.is_file():
        raise RunError(f"{run}: no run there ({CONFIG} is missing); expected a folder of arec.train")
    return Config.from_settings(places or {}, path)


def is_finished(folder: Path, config: Config) -> bool:
    """Whether the folder holds the finished run of a configuration.

    Raises:
        RunError: it holds a run of another one.
        ConfigError: its settings are not valid.
    """
    if not (folder / CONFIG).is_file():
        return False
    kept = read_config(folder)
    for name in Config.model_fields:
        found, wanted = getattr(kept, name), getattr(config, name)
        if found != wanted and name not in PLACES:
            raise RunError(
                f"{folder}: holds a run with {name} {found}, expected {wanted}; choose another folder"
            )
    return (folder / METRICS).is_file()


def load_state(path: Path) -> dict[str, Any]:
    """A checkpoint written by :func:`save`, on the CPU.

    Raises:
        RunError: there is none, or it is not one.
    """
    try:
        with zipfile.ZipFile(path) as records:  # PyTorch takes damaged numbers as they are
            if damaged := records.testzip():
                raise zipfile.BadZipFile(damaged)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file; arec.train writes it after an epoch") from None
    except Exception as error:  # noqa: BLE001 (what a damaged file can lead to has no end)
        way_out = (
            "delete it, and --resume trains from the beginning" if path.name == LAST
            else "the run has to be trained again"
        )  # fmt: skip
        raise RunError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); {way_out}"
        ) from None


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Around putting a checkpoint to use.

    Raises:
        RunError: it is none of ours, or of a run with other settings.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(
            f"{path}: does not fit the settings of {CONFIG} beside it ({type(error).__name__}); "
            "expected both as arec.train wrote them"
        ) from None


def fingerprint(sequences: Sequences) -> str:
    """Changes when the items of any user do, or their numbering."""
    digest = hashlib.sha256("\n".join(sequences.item_ids).encode())
    digest.update(sequences.items)
    digest.update(sequences.offsets)
    return digest.hexdigest()


def origin(config: Config, data: str) -> dict[str, Any]:
    """What a checkpoint says of how it was trained, and on which data (their fingerprint)."""
    return {"data": data, "settings": config.model_dump(mode="json", exclude=_FREE)}


def located(config: Config) -> Config:
    """The same settings with whole paths, for a run is evaluated from any folder. What AREC_DATA_DIR names
    becomes `data_dir`; without either, a later AREC_DATA_DIR counts."""
    dataset, data_dir = absolute(config.dataset, config.data_dir)
    return config.model_copy(update={"dataset": dataset, "data_dir": data_dir})


def load_data(config: Config, run: Path | None = None) -> LeaveOneOut:
    """The split data of a configuration.

    Args:
        run: the folder whose settings they are; an error says so.

    Raises:
        DataError: the data set cannot be found, fetched, read or used.
    """

    def read() -> LeaveOneOut:
        long = Timer(_LONG, parallel.say, [f"reading {config.dataset}"])
        long.daemon = True
        long.start()
        try:
            sequences = load(
                config.dataset,
                data_dir=config.data_dir,
                user_column=config.user_column,
                item_column=config.item_column,
                time_column=config.time_column,
                k_core=config.k_core,
                seed=config.seed,
            )
        except DataNotFoundError as error:
            if run is None:
                raise
            raise DataNotFoundError(f"{error}; {run / CONFIG} says where the data are") from None
        finally:
            long.cancel()
        return LeaveOneOut(sequences)

    split = parallel.from_main(read)
    # Built again from arrays that came from there, which have forgotten that they are read-only.
    return split if parallel.is_main() else LeaveOneOut(replace(split.sequences))


def sampled_candidates(run: Path, split: LeaveOneOut, seed: int) -> dict[str, np.ndarray]:
    """The sampled candidates of the test stage: drawn once, then kept with the run.

    Raises:
        RunError: what is kept there is not readable, or there is no place for it.
    """
    path = run / CANDIDATES
    if not path.is_file():
        # Not compressed, which would take far longer than to write what it saves.
        drawn = draw_candidates(split, "test", seed)
        write_atomically(path, lambda file: np.savez(file, **drawn))
        del drawn
    try:
        with np.load(path) as kept:
            candidates = dict(kept)
        shape, num_items = (len(split.eval_users), SAMPLED), split.sequences.num_items
        if candidates.keys() != set(SAMPLED_PROTOCOLS) or any(
            rows.dtype != np.int32 or rows.shape != shape or rows.min() < 0 or rows.max() > num_items
            for rows in candidates.values()
        ):
            raise ValueError("other rankings, users or items")
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (what a damaged file can lead to has no end)
        raise RunError(
            f"{path}: not readable candidates of this run ({type(error).__name__}); delete it, and "
            "they are drawn again"
        ) from None
    return candidates


def check_origin(path: Path, state: dict[str, Any], config: Config, data: str) -> None:
    """That a checkpoint is used with the settings and the data it was trained with.

    Args:
        data: their fingerprint.

    Raises:
        RunError: they are others, or the checkpoint does not say which data they were.
    """
    now = origin(config, data)
    with fitting(path):
        trained_on, trained_with = state["data"], state.get("settings", {})  # older ones have no settings
        changed = [name for name, value in trained_with.items() if now["settings"].get(name, value) != value]
    if changed:
        name = changed[0]
        raise RunError(
            f"{path}: trained with {name} {trained_with[name]}, got {now['settings'][name]} from "
            f"{path.parent / CONFIG}; put it back, or train a new run"
        )
    if trained_on != data:
        raise RunError(
            f"{path}: trained on other data than {config.dataset} now gives; train a new run, "
            f"or name the file as it was in {path.parent / CONFIG}"
        )


def restore_model(objective: Objective, path: Path, state: dict[str, Any], data: str) -> None:
    """Put the model of a checkpoint, ``state`` read from ``path``, into ``objective``.

    Args:
        data: the fingerprint of those it is used with.

    Raises:
        RunError: it does not fit the settings or the data.
    """
    check_origin(path, state, objective.config, data)
    with fitting(path):
        weights = state["objective"]
        if not all(weights[name].isfinite().all() for name, _ in objective.named_parameters()):
            raise ValueError("weights that are infinite or NaN")
        objective.load_state_dict(weights)


def load_run(
    run: str | Path, device: str | None = "cpu"
) -> tuple[Config, LeaveOneOut, Objective]:
    """Configuration, data and the chosen model of a run; of one that has not finished, the best so far.

    Args:
        device: where the model goes; None: where the settings of the run say.

    Raises:
        RunError: the folder holds no run or no checkpoint, it does not fit the data, or there is no
            such device here.
        ConfigError: its settings are not valid.
        DataError: the data are no longer where they were.
    """
    run = user_path(run)
    config = parallel.from_main(lambda: read_config(run))
    try:
        place = pick_device(device or config.device)
    except RunError as error:
        where = "" if device else f'; set device = "auto" in {run / CONFIG}'
        raise RunError(f"{error}{where}") from None
    state = parallel.from_main(lambda: load_state(run / BEST))
    if not (run / METRICS).exists():
        parallel.say(f"{run}: training has not finished; its best epoch so far")
    split = load_data(config, run)
    objective = build_objective(config, split.sequences.num_items)
    restore_model(objective, run / BEST, state, fingerprint(split.sequences))
    return config, split, objective.to(place).eval()
