"""``python -m arec.evaluate RUN``: the test figures of a finished run, again, from its checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

from arec import parallel
from arec.checkpoint import METRICS, load_run, sampled_candidates
from arec.cli import Parser, run
from arec.results import final_metrics, format_results
from arec.trainer import pick_device


def evaluate_run(folder: Path) -> str:
    """The table of results, from the checkpoint of the best epoch.

    Raises:
        RunError, ConfigError, DataError: see :func:`arec.checkpoint.load_run`.
    """
    config, split, objective = load_run(folder)
    if parallel.is_main() and not (folder / METRICS).exists():
        print(f"{folder}: training has not finished; its best epoch so far", file=sys.stderr)
    objective.to(pick_device(config.device))
    candidates = parallel.from_main(lambda: sampled_candidates(folder, split, config.seed))
    return format_results(final_metrics(objective, split, candidates), candidates)


def main() -> None:
    parser = Parser("arec.evaluate", "Rank the test items with the checkpoint of a run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run of arec.train")
    with parallel.joined():
        table = evaluate_run(parallel.from_main(lambda: parser.parse_args().run))
        if parallel.is_main():
            print(table)


if __name__ == "__main__":
    run("arec.evaluate", main)
