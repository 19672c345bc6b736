"""``python -m arec.reproduce table1|table2``: a table of the paper again, beside its figures.

Runs that are missing are trained, interrupted ones go on, finished ones stay.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arec.checkpoint import (
    CONFIG,
    METRICS,
    RunError,
    load_data,
    located,
    read_config,
    write_text,
)
from arec.cli import Parser, add_settings, given_settings, run
from arec.config import PLACES, Config
from arec.tables import TABLES, Results, Table, over_seeds, to_csv, to_markdown
from arec.train import train

# Where a run stands, and its settings, by method, view pairs and seed.
Plan = Mapping[tuple[str, str, int], tuple[Path, Config]]


def recipe(method: str) -> str:
    """The faithful recipe; the published programs have the same settings for every data set."""
    return f"{method}-ml-1m-published"


def plan(
    table: Table, dataset: str, seeds: Sequence[int], given: Mapping[str, Any], runs_dir: Path
) -> Plan:
    """The runs that a table needs, one seed after the other."""
    planned = {}
    for seed in seeds:
        for method, views in table.runs():
            own = {"dataset": dataset, "views": views, "seed": seed}
            folder = runs_dir / f"{Path(dataset).name}-{method}-{views}-seed{seed}"
            config = Config.from_settings({**given, **own}, recipe(method))
            planned[method, views, seed] = (folder, located(config))
    return planned


def is_finished(folder: Path, config: Config) -> bool:
    """Whether the folder holds the finished run of a configuration.

    Raises:
        RunError: it holds a run of another one.
    """
    if not (folder / CONFIG).is_file():
        return False
    kept = read_config(folder)
    for name in Config.model_fields:
        found, wanted = getattr(kept, name), getattr(config, name)
        if found != wanted and name not in PLACES:
            raise RunError(
                f"{folder}: holds a run with {name} {found}, expected {wanted}; choose another "
                "--runs-dir"
            )
    return (folder / METRICS).is_file()


def train_missing(runs: Iterable[tuple[Path, Config]]) -> None:
    missing = [(folder, config) for folder, config in runs if not is_finished(folder, config)]
    for config in {config.dataset: config for _, config in missing}.values():
        load_data(config)  # that one cannot be had should be said now, not in a day
    for number, (folder, config) in enumerate(missing, start=1):
        print(f"run {number} of {len(missing)}: {folder}", file=sys.stderr)
        train(config, folder)


def read_results(planned: Plan) -> Results:
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for (method, views, _), (folder, _) in planned.items():
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        results.setdefault((method, views), []).append(metrics)
    return results


def describe(table: Table, seeds: Sequence[int], given: Mapping[str, Any]) -> str:
    """What was run, in a sentence."""
    changes = [f"{name} = {value}" for name, value in given.items() if name != "data_dir"]
    recipes = ", ".join(f"`{recipe(method)}`" for method in table.methods)
    but = f", but {', '.join(changes)}" if changes else ""
    return f"Ours: {over_seeds(len(seeds))}, recipes {recipes}{but}."


def main() -> None:
    parser = Parser(
        "arec.reproduce",
        "Make a table of the paper again, beside its figures. The settings of arec.train (see its "
        "--help) are options here too, all but --method and --views.",
    )
    parser.add_argument("table", choices=TABLES, help="which one")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="runs of each cell, from --seed upwards"
    )
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), metavar="DIR",
        help="where the run folders and the tables are",
    )  # fmt: skip
    add_settings(parser, listed=False)
    arguments = parser.parse_args()
    given = given_settings(arguments)
    if arguments.seeds < 1:
        parser.error(f"--seeds: expected at least 1, got {arguments.seeds}")
    for name in ("method", "views"):
        if name in given:
            parser.error(f"--{name}: the table says which; expected no such option")
    table, runs_dir = TABLES[arguments.table], arguments.runs_dir
    datasets = [given.pop("dataset")] if "dataset" in given else table.datasets
    first = Config.from_settings({"seed": given.pop("seed", 0)}).seed
    seeds = range(first, first + arguments.seeds)

    plans = {dataset: plan(table, dataset, seeds, given, runs_dir) for dataset in datasets}
    train_missing(run for planned in plans.values() for run in planned.values())
    for dataset, planned in plans.items():
        name, results = Path(dataset).name, read_results(planned)
        text = to_markdown(arguments.table, name, results, describe(table, seeds, given))
        figures = to_csv(arguments.table, name, results)
        write_text(runs_dir / f"{arguments.table}-{name}.md", text)
        write_text(runs_dir / f"{arguments.table}-{name}.csv", figures)
        print(text)


if __name__ == "__main__":
    run("arec.reproduce", main)
