"""``python -m arec.evaluate RUN``: the test figures of a finished run, again, from its checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

from arec.checkpoint import METRICS, load_run, sampled_candidates
from arec.cli import Parser, run
from arec.results import final_metrics, format_results
from arec.trainer import pick_device


def main() -> None:
    parser = Parser("arec.evaluate", "Rank the test items with the checkpoint of a run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run of arec.train")
    arguments = parser.parse_args()
    config, split, objective = load_run(arguments.run)
    if not (arguments.run / METRICS).exists():
        print(f"{arguments.run}: training has not finished; its best epoch so far", file=sys.stderr)
    objective.to(pick_device(config.device))
    candidates = sampled_candidates(arguments.run, split, config.seed)
    metrics = final_metrics(objective, split, config, candidates)
    print(format_results(metrics, candidates))


if __name__ == "__main__":
    run("arec.evaluate", main)
