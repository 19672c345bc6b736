"""``python -m arec.report RUN [RUN …]``: the figures of the paper, from the logs of runs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from arec.checkpoint import LOG, METRICS, RunError, read_config, write_atomically
from arec.cli import Parser, run
from arec.figures import FIGURES, LeftOut, Run


def read_run(folder: Path, name: str) -> Run:
    """What a run folder tells, finished or not.

    Raises:
        RunError: it is no folder of a run, or one without a whole epoch.
        ConfigError: its settings are not valid.
    """
    config = read_config(folder)
    log = [_json(folder / LOG, line) for line in _lines(folder / LOG)]
    if not log:
        raise RunError(f"{folder / LOG}: no epoch logged yet")
    finished = (folder / METRICS).is_file()
    metrics = _json(folder / METRICS, "".join(_lines(folder / METRICS))) if finished else None
    return Run(name, config, log, metrics)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise RunError(f"{path}: {reason}") from None


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RunError(f"{path}: not JSON: {error}") from None


def main() -> None:
    parser = Parser("arec.report", "Draw the figures that the logs of runs hold.")
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folder of a run of arec.train"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("figures"), metavar="DIR", help="where the PNG files go"
    )
    arguments = parser.parse_args()
    folders = list(dict.fromkeys(folder.resolve() for folder in arguments.runs))
    short = [folder.name for folder in folders]
    names = short if len(set(short)) == len(short) else list(map(str, folders))
    runs = [read_run(folder, name) for folder, name in zip(folders, names)]

    files, lines = {}, []
    for file, (title, draw) in FIGURES.items():
        try:
            figure = draw(runs)
        except LeftOut as reason:
            lines.append(f"left out: {file} ({title}): {reason}")
            continue
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        files[arguments.out / file] = buffer.getvalue()
        lines.append(f"wrote {arguments.out / file} ({title})")
    for path, content in files.items():
        write_atomically(path, lambda file, content=content: file.write(content))
    print("\n".join(lines))


if __name__ == "__main__":
    run("arec.report", main)
