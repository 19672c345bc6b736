"""What run folders tell: the settings, the log and the figures of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from arec.checkpoint import LOG, METRICS, read_config
from arec.config import PLACES, Config
from arec.errors import RunError
from arec.files import user_path


class _Written(BaseModel, extra="allow", strict=True):
    """What is read of a file that arec.train has written; there is more in it."""


class _Figures(_Written):
    __pydantic_extra__: dict[str, float]

    ndcg: float = Field(alias="NDCG@10")
    recall: float = Field(alias="Recall@10")


class _Rankings(_Written):
    filtered: _Figures
    unfiltered: _Figures


class _EpochRecord(_Written):
    epoch: int
    loss: float
    valid: _Rankings
    data: str | None = None  # their fingerprint
    alignment: float | None = None
    uniformity: float | None = None
    similarity_histogram: list[int] | None = None
    k_mean: float | None = None
    k_std: float | None = None
    k_stat: float | None = None
    false_negatives: dict[str, float] | None = None


class _Metrics(_Written):
    data: str | None = None
    valid: _Rankings
    test: _Rankings


@dataclass(frozen=True)
class Run:
    """What a run folder tells."""

    name: str  # in legends and messages, unique among the runs
    config: Config
    log: list[dict[str, Any]] = field(repr=False)  # a record an epoch
    metrics: dict[str, Any] | None = field(repr=False)  # of a finished run

    def curve(self, key: str) -> tuple[list[int], list[Any]]:
        """Epochs that have logged ``key``, and what they have; nothing where none has.

        Keys are those of a record: ``loss``, ``seconds`` and ``valid``, which has the metrics of each
        ranking; of contrastive methods ``L_basic``, ``L_cl``, ``alignment``, ``uniformity`` and
        ``similarity_histogram``; of AdaptiveRec also ``L_reg``, ``k_mean``, ``k_std``, ``k_stat``,
        ``positives_per_row`` or ``masked_per_row``, and on the built-in data ``false_negatives``. The
        validation curve::

            run = read_run("runs/mine")
            epochs, valid = run.curve("valid")
            ndcg = [rankings["filtered"]["NDCG@10"] for rankings in valid]
        """
        records = [record for record in self.log if key in record]
        return [record["epoch"] for record in records], [record[key] for record in records]


def read_run(folder: str | Path, name: str | None = None) -> Run:
    """What a run folder tells, finished or not.

    Args:
        name: what it is called; default: as its folder.

    Raises:
        RunError: it is no folder of a run, or one without a whole epoch.
        ConfigError: its settings are not valid.
    """
    folder = user_path(folder)
    config = read_config(folder)
    finished = (folder / METRICS).is_file()
    lines = _text(folder / LOG).splitlines() if finished or (folder / LOG).exists() else []
    if not lines:
        raise RunError(f"{folder}: no epoch is finished yet")
    try:
        log = [_json(folder / LOG, line, _EpochRecord, number) for number, line in enumerate(lines, start=1)]
    except RunError as error:
        way_out = f"without it and {METRICS}" if finished else "without it"
        raise RunError(f"{error}; {way_out}, arec.train --resume writes it again") from None
    return Run(name or folder.name, config, log, read_metrics(folder) if finished else None)


def read_metrics(folder: str | Path) -> dict[str, Any]:
    """The figures of a finished run, see `arec.train.train`.

    Raises:
        RunError: they are missing or damaged.
    """
    path = user_path(folder) / METRICS
    try:
        return _json(path, _text(path), _Metrics)
    except RunError as error:
        raise RunError(f"{error}; without it, arec.train --resume ranks again") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise RunError(f"{path}: {reason}") from None


def _json(path: Path, text: str, expected: type[_Written], first_line: int = 1) -> dict[str, Any]:
    """An object as arec.train writes it."""
    try:
        found = json.loads(text)
        expected.model_validate(found)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise RunError(
            f"{path}, line {line}, column {error.colno}: not JSON ({error.msg})"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        what = "expected an object" if first["type"] == "model_type" else first["msg"]
        reason = ": ".join(filter(None, (".".join(map(str, first["loc"])), what)))
    except (RecursionError, ValueError) as error:  # too deep, a number of thousands of digits
        reason = str(error)
    else:
        return found
    raise RunError(f"{path}, line {first_line}: not as arec.train writes it ({reason})")


def differing(configs: Sequence[Config], *but: str) -> list[str]:
    """The settings, other than these and the seed, of which they have several, wherever the data are."""
    passed_over = PLACES | {"seed", "dataset", *but}
    return [
        name
        for name in Config.model_fields
        if name not in passed_over and len({getattr(config, name) for config in configs}) > 1
    ]


def alike(runs: Sequence[Run], *but: str) -> list[list[Run]]:
    """Groups of runs on the same data that differ, if at all, in the seed and these settings."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        same = run.config.model_dump_json(exclude=PLACES | {"seed", *but})
        # A file may have grown between two runs. The built-in data are made by the seed. Older logs do not tell.
        data = (run.metrics or run.log[-1]).get("data", "") if run.config.dataset != "builtin" else ""
        groups.setdefault((same, data), []).append(run)
    return list(groups.values())
