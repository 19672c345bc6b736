"""``python -m arec.evaluate RUN``: the test figures of a finished run, again, from its checkpoint.

``--ranks FILE`` writes the rank of every user's test item besides, from which any other metric can be
computed, or the significance of a difference between two runs on the same data (``pip install scipy``; two
seeds of one method may differ significantly too: of methods compare each user's mean over several)::

    import polars as pl
    from scipy.stats import wilcoxon

    a, b = (pl.read_csv(file, schema_overrides={"user": pl.String}) for file in ("a.csv", "b.csv"))
    assert a["user"].equals(b["user"])
    ndcg = [(1 / (ranks["filtered"] + 1).log(2)) * (ranks["filtered"] <= 10) for ranks in (a, b)]
    print(wilcoxon(*ndcg))
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from arec import parallel
from arec.checkpoint import RUN_FILES, load_run, sampled_candidates
from arec.cli import Parser, add_device, run_program
from arec.data.split import LeaveOneOut
from arec.errors import RunError
from arec.files import user_path, write_text
from arec.ranking import evaluate_ranks, rank_shared
from arec.results import final_metrics, format_results
from arec.scoring import score_batches


def evaluate_run(
    folder: str | Path, ranks: str | Path | None = None, *, device: str | None = None
) -> dict[str, Any]:
    """The test figures of a run, from the checkpoint of its best epoch.

    Args:
        ranks: file to write `user_ranks` to, as CSV.
        device: where; default: where the settings of the run say.

    Returns:
        see :func:`arec.results.final_metrics`; :func:`arec.results.format_results` makes a table of it.

    Raises:
        RunError, ConfigError, DataError: see :func:`arec.checkpoint.load_run`; RunError also: `ranks`
            cannot be written, exists, or is a file of the run.
    """
    folder, ranks = user_path(folder), ranks and user_path(ranks)
    if ranks:
        parallel.from_main(lambda: _check_new(ranks, folder))
    config, split, objective = load_run(folder, device)
    candidates = parallel.scattered(lambda: sampled_candidates(folder, split, config.seed))
    found, given = rank_shared(
        split, "test", lambda part: score_batches(objective, part, "test"), candidates
    )
    if ranks:
        parallel.from_main(lambda: write_text(ranks, user_ranks(split, found).write_csv()))
    return final_metrics(objective, split, candidates, evaluate_ranks(split, "test", found, given))


def _check_new(path: Path, run: Path) -> None:
    """That a file can be written there, before hours of ranking, and is nobody's."""
    if path.resolve() in [(run / name).resolve() for name in RUN_FILES]:
        raise RunError(f"{path}: is a file of the run; expected a new one for the ranks")
    if path.exists():
        raise RunError(f"{path}: exists; expected a new file for the ranks")
    write_text(path, "")
    path.unlink()


def user_ranks(split: LeaveOneOut, ranks: Mapping[str, np.ndarray]) -> pl.DataFrame:
    """The ranks of all test items as a table, 1 being the best.

    Runs of one seed have the same sampled candidates on the same data, runs of two seeds others.

    Returns:
        columns user (str, as in the data), history (int, its items before the test item), filtered,
        unfiltered, popular-100 and random-100 (int).
    """
    user_ids = split.sequences.user_ids
    users = [user_ids[user] for user in split.eval_users]
    return pl.DataFrame({"user": users, "history": split.history_lengths("test"), **ranks})


def main() -> None:
    parser = Parser("arec.evaluate", "Rank the test items with the checkpoint of a run.")
    parser.add_argument("run", type=user_path, metavar="RUN", help="folder of a run of arec.train")
    parser.add_argument(
        "--ranks",
        type=user_path,
        metavar="FILE",
        help="also write the rank of every user's test item in each ranking, and the length of the "
        "history, as CSV, into a new file, in a new folder if need be",
    )
    add_device(parser)
    with parallel.joined():
        arguments = parallel.from_main(parser.parse_args)
        metrics = evaluate_run(arguments.run, arguments.ranks, device=arguments.device)
        if parallel.is_main():
            print(format_results(metrics))


if __name__ == "__main__":
    run_program("arec.evaluate", main)
