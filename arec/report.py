"""``python -m arec.report RUN [RUN …]``: a table of runs, and the paper's figures from their logs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from arec.cli import Parser, run_program
from arec.figures import FIGURES, Plot
from arec.files import user_path, write_bytes
from arec.runs import Run, alike, differing, read_run
from arec.tables import SUMMARY, markdown_table, summary, with_idle_simthres

TABLE = "results.md"


def names(folders: Sequence[Path]) -> list[str]:
    """Of different folders: their last parts, as many as tell all of them apart."""
    for parts in count(1):
        found = [str(Path(*folder.parts[-parts:])) for folder in folders]
        if len(set(found)) == len(found):
            return found


def png(plot: Plot, runs: Sequence[Run]) -> bytes:
    """The figure of selected runs, at least one."""
    buffer = io.BytesIO()
    plot.draw(runs).savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def results_table(runs: Sequence[Run]) -> str:
    """Test figures of finished runs, at least one; runs that differ in the seed alone are one row."""
    rows, repeated = [], []
    changed = differing([run.config for run in runs])
    for group in alike(runs):
        config = group[0].config
        figures = summary([run.metrics for run in group])
        named = ", ".join(run.name for run in group)
        settings = ", ".join(f"{name} {getattr(config, name)}" for name in changed if config.uses(name))
        rows.append([named, Path(config.dataset).name, settings, *figures])
        if len({run.config.seed for run in group}) < len(group):
            repeated.append(f"Of {named} several have the same seed: not a deviation over seeds.")
    head = ["test", "data", "settings in which runs differ", *map(" ".join, SUMMARY)]
    protocol = (
        "Ranking among all items; filtered: the rest of the user's own history is not ranked. Of runs that "
        "differ in the seed alone mean ± standard deviation."
    )
    notes = [protocol, *repeated, *with_idle_simthres(run.metrics for run in runs)]
    lines = [*markdown_table(head, rows), "", *notes]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = Parser(
        "arec.report",
        "Write a table of the test figures of runs, and draw the figures that their logs hold. A run is "
        "called by the name of its folder, with those above it where two have the same.",
    )
    parser.add_argument(
        "runs", type=user_path, nargs="+", metavar="RUN", help="folder of a run of arec.train"
    )
    parser.add_argument(
        "--out", type=user_path, default=Path("figures"), metavar="DIR", help="where the table and the PNG files go"
    )
    arguments = parser.parse_args()
    if arguments.out.exists() and not arguments.out.is_dir():
        parser.error(f"--out: expected a folder, {arguments.out} is a file")
    folders = list(dict.fromkeys(folder.resolve() for folder in arguments.runs))
    runs = [read_run(folder, name) for folder, name in zip(folders, names(folders))]

    files, lines = {}, []
    if finished := [run for run in runs if run.metrics]:
        files[arguments.out / TABLE] = results_table(finished).encode()
        lines.append(f"wrote {arguments.out / TABLE} (test figures)")
    if left_out := ", ".join(run.name for run in runs if not run.metrics):
        lines.append(f"left out of {TABLE}: {left_out}: it takes finished runs")
    for file, plot in FIGURES.items():
        shown = plot.select(runs)
        if not shown:
            lines.append(f"left out: {file} ({plot.title}): it takes {plot.takes}")
            continue
        files[arguments.out / file] = png(plot, shown)
        lines.append(f"wrote {arguments.out / file} ({plot.title})")
        if left_out := ", ".join(run.name for run in runs if run not in shown):
            lines.append(f"left out of {file}: {left_out}: it takes {plot.takes}")
    for path, content in files.items():
        write_bytes(path, content)
    print("\n".join(lines))


if __name__ == "__main__":
    run_program("arec.report", main)
