"""``python -m arec.reproduce table1|table2|figures``: the paper's tables and figures again.

Runs that are missing are trained, interrupted ones go on, finished ones stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arec import parallel
from arec.checkpoint import (
    BEST,
    check_origin,
    fingerprint,
    is_finished,
    load_data,
    load_state,
    located,
)
from arec.cli import Parser, add_settings, given_settings, run_program
from arec.config import Config
from arec.figures import FIGURES
from arec.files import user_path, write_bytes, write_text
from arec.report import png
from arec.runs import read_run
from arec.tables import TABLES, Table, over_seeds, to_csv, to_markdown, with_idle_simthres
from arec.train import train

FIGURES_OF = "figures"
PAPER = TABLES["table1"].datasets
# The released program, which made the paper's tables, trains all methods with one file of settings.
FAITHFUL = "adaptiverec-ml-1m-published"
# Of Table 1, where AdaptiveRec's figure is that of Table 2 on US_X, and of the figures that compare no views.
VIEWS = "us_x"

# Where a run stands, and its settings.
Planned = tuple[Path, Config]
TableRuns = Mapping[tuple[str, str], Sequence[Planned]]  # by method and view pairs, a seed each
FigureRuns = Mapping[str, Sequence[Planned]]  # by file


@dataclass(frozen=True)
class Plan:
    """What runs on one data set are called, and how they are set."""

    dataset: str
    given: Mapping[str, Any]  # from the command line; the settings of a recipe give way to them
    runs_dir: Path
    quick: bool = False

    @property
    def name(self) -> str:
        return Path(self.dataset).name

    def recipe(self, method: str) -> str | None:
        """The faithful one, whose settings are the same for every method and data set, or the quick one of
        both; the built-in data take the default settings."""
        if self.dataset == "builtin":
            return None
        return f"{method}-{self.name}" if self.quick else FAITHFUL

    def run(self, method: str, views: str, seed: int, **changes: Any) -> Planned:
        """The run of a method on view pairs, with ``changes`` to its recipe."""
        own = {"dataset": self.dataset, "method": method, "views": views, "seed": seed}
        settings = {**self.given, **own}
        usual = Config.from_settings(settings, self.recipe(method))
        changes = {name: value for name, value in changes.items() if getattr(usual, name) != value}
        config = Config.from_settings({**settings, **changes}, self.recipe(method))
        what = [f"{name}-{value}" for name, value in changes.items()]
        folder = "-".join([self.name, method, views, *what, f"seed{seed}"])
        return self.runs_dir / folder, located(config)

    def table(self, table: Table, seeds: Sequence[int]) -> TableRuns:
        return {key: [self.run(*key, seed) for seed in seeds] for key in table.runs()}

    def figures(self, seeds: Sequence[int]) -> FigureRuns:
        """Only the sweep of the quantile has use for more seeds than one."""
        return {
            file: [
                self.run(**{"views": VIEWS, **settings}, seed=seed)
                for seed in (seeds if file == "quantile.png" else seeds[:1])
                for settings in plot.made_of
            ]
            for file, plot in FIGURES.items()
        }


def find_missing(runs: Iterable[Planned]) -> list[Planned]:
    """The runs to train, one seed after the other.

    Raises:
        RunError: a folder holds a run of other settings, or of other data.
        ConfigError: the settings that a folder holds are not valid.
        DataError: a data set cannot be had; said here and not in a day.
    """
    ordered = sorted(dict(runs).items(), key=lambda run: run[1].seed)
    finished = {folder: is_finished(folder, config) for folder, config in ordered}
    data = {}  # fingerprints; the built-in ones depend on the seed
    for folder, config in ordered:
        which = config.dataset, config.seed if config.dataset == "builtin" else None
        if which not in data:
            data[which] = fingerprint(load_data(config).sequences)
        if finished[folder]:
            best = folder / BEST
            check_origin(best, load_state(best), config, data[which])
    return [(folder, config) for folder, config in ordered if not finished[folder]]


def train_all(missing: Sequence[Planned]) -> None:
    for number, (folder, config) in enumerate(missing, start=1):
        parallel.say(f"run {number} of {len(missing)}: {folder}")
        train(config, folder)


def describe(plan: Plan, runs: Mapping[Any, Sequence[Planned]]) -> str:
    """How the runs are set."""
    changes = [f"{name} = {value}" for name, value in plan.given.items() if name != "data_dir"]
    methods = dict.fromkeys(config.method for planned in runs.values() for _, config in planned)
    recipes = [f"`{name}`" for name in dict.fromkeys(map(plan.recipe, methods)) if name]
    which = "recipe" if len(recipes) == 1 else "recipes"
    settings = f"{which} {', '.join(recipes)}" if recipes else "default settings"
    return f"{settings}, but {', '.join(changes)}" if changes else settings


def write_table(plan: Plan, name: str, seeds: Sequence[int], needed: TableRuns) -> None:
    results = {
        key: [read_run(folder).metrics for folder, _ in runs]
        for key, runs in needed.items()
    }
    ours = f"Ours: {over_seeds(len(seeds))}, {describe(plan, needed)}."
    text = to_markdown(name, plan.name, results, ours)
    write_text(plan.runs_dir / f"{name}-{plan.name}.md", text)
    write_text(plan.runs_dir / f"{name}-{plan.name}.csv", to_csv(name, plan.name, results))
    print(text)


def draw_figures(plan: Plan, seeds: Sequence[int], needed: FigureRuns) -> None:
    """The figures, and a page that shows them and says how their runs were set."""
    folder = plan.runs_dir / f"{FIGURES_OF}-{plan.name}"
    page = [
        f"# Figures, {plan.name}",
        "",
        f"Runs with {describe(plan, needed)}; one seed, in the sweep of the quantile {len(seeds)}.",
    ]
    metrics: dict[str, Any] = {}
    for file, runs in needed.items():
        shown = FIGURES[file].select([read_run(run) for run, _ in runs])
        metrics |= {each.name: each.metrics for each in shown}
        if shown:  # planted truth is in the built-in data only
            write_bytes(folder / file, png(FIGURES[file], shown))
            page += ["", f"![{FIGURES[file].title}]({file})"]
            print(f"wrote {folder / file} ({FIGURES[file].title})")
    for line in with_idle_simthres(metrics.values()):
        page += ["", line]
    write_text(folder / "README.md", "\n".join(page) + "\n")
    print(f"wrote {folder / 'README.md'} (all of them, and how their runs were set)")


def main() -> None:
    with parallel.joined():
        what, seeds, plans, needed, missing = parallel.from_main(planned)
        train_all(missing)

        def write() -> None:
            for plan, runs in zip(plans, needed):
                if what in TABLES:
                    write_table(plan, what, seeds, runs)
                else:
                    draw_figures(plan, seeds, runs)

        parallel.from_main(write)


def planned() -> tuple[str, range, list[Plan], list[TableRuns | FigureRuns], list[Planned]]:
    """What the command line asks for, its seeds, plans and the runs that they need; which are missing."""
    parser = Parser(
        "arec.reproduce",
        "Make a table of the paper again, beside its figures, or draw its figures again. Without "
        "--dataset, tables are of the paper's data sets and figures of the built-in data. The "
        "settings of arec.train (see its --help) are options here too, all but --method and "
        "--views (and none from a file: no --config).",
    )
    parser.add_argument("what", choices=(*TABLES, FIGURES_OF), help="which table, or all figures")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N",
        help="runs of each cell, or point of a sweep, from --seed upwards",
    )  # fmt: skip
    parser.add_argument(
        "--runs-dir", type=user_path, default=Path("runs"), metavar="DIR",
        help="where the run folders, tables and figures are",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true",
        help="on ml-1m and beauty the recipes METHOD-DATASET instead of the settings of "
        "AdaptiveRec's program: some ten minutes to an hour and a half a run on one core",
    )  # fmt: skip
    add_settings(parser, listed=False)
    arguments = parser.parse_args()
    given = given_settings(arguments)
    if arguments.seeds < 1:
        parser.error(f"--seeds: expected at least 1, got {arguments.seeds}")
    for name in ("method", "views"):
        if name in given:
            parser.error(f"--{name}: the table or figure says which; expected no such option")
    table = TABLES.get(arguments.what)
    datasets = table.datasets if table else ("builtin",)
    if "dataset" in given:
        datasets = (given.pop("dataset"),)
    if arguments.quick and not {*datasets} <= {"builtin", *PAPER}:
        parser.error(f"--quick: has recipes for {' and '.join(PAPER)} only, got {datasets[0]}")
    first = Config.from_settings({"seed": given.pop("seed", 0)}).seed
    seeds = range(first, first + arguments.seeds)

    plans = [Plan(dataset, given, arguments.runs_dir, arguments.quick) for dataset in datasets]
    needed = [plan.table(table, seeds) if table else plan.figures(seeds) for plan in plans]
    missing = find_missing(run for runs in needed for each in runs.values() for run in each)
    for plan, runs in zip(plans, needed):
        parallel.say(f"{plan.name}: {describe(plan, runs)}")
    return arguments.what, seeds, plans, needed, missing


if __name__ == "__main__":
    run_program("arec.reproduce", main)
