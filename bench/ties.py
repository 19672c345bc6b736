"""What the order of a user's interactions at the same time makes of figures: `python bench/ties.py FILE`.

FILE is a log with times (ratings.dat, u.data, *.inter). SASRec is trained on it in three orders of ties:
shuffled, as the file has them, and by item id, which is the same for all users. In a file without times
ties are made: an interaction has the time of the one before with a probability of one half. Trains what
is missing under runs/ties, adds the file to bench/results/ties.json and writes ties.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import polars as pl
from provenance import RESULTS, commit, keep, machine
from repeats import measure

from arec.config import Config
from arec.data.formats import read
from arec.data.prepare import tied_share
from arec.tables import markdown_table, mean_and_deviation, over_seeds
from arec.train import train

RUNS = Path("runs") / "ties"
SETTINGS = {
    "method": "sasrec", "max_length": 50, "time_column": "", "batch_size": 32, "learning_rate": 2e-3,
    "epochs": 50, "patience": 20, "scale_embeddings": False,
}  # fmt: skip


def with_made_ties(log: pl.DataFrame) -> pl.DataFrame:
    """About as many as there are in MovieLens 100K."""
    later = np.random.default_rng(0).random(len(log)) < 0.5
    return log.with_columns(time=pl.Series(later.cumsum()))


def orders(log: pl.DataFrame) -> dict[str, np.ndarray]:
    """Rows of the log by user and time, and among ties by what each order is named for."""
    ids = log["item"].cast(pl.Int64, strict=False)
    ids = log["item"].rank("dense") if ids.has_nulls() else ids
    keys = {
        "shuffled": np.random.default_rng(0).permutation(len(log)),
        "as in the file": np.arange(len(log)),
        "by item id": ids.to_numpy(),
    }
    users, times = log["user"].rank("dense").to_numpy(), log["time"].to_numpy()
    return {name: np.lexsort((key, times, users)) for name, key in keys.items()}


def shares(log: pl.DataFrame) -> dict[str, float]:
    """How many interactions, and how many test items, have the time of the user's one before."""
    rows = log.sort("user", "time")
    users, times = rows["user"].to_numpy(), rows["time"].to_numpy()
    last = np.flatnonzero(np.r_[users[1:] != users[:-1], True])
    return {
        "interactions": tied_share(users, times),
        "last": float((times[last] == times[last - 1]).mean()),
    }


def figures(file: Path, name: str, rows: pl.DataFrame, seed: int) -> dict[str, float]:
    stem = f"{file.name.partition('.')[0]}-{name.replace(' ', '-')}"
    folder, data = RUNS / f"{stem}-{seed}", RUNS / f"{stem}.csv"
    rows.select("user", "item").write_csv(data)
    config = Config(dataset=str(data.resolve()), seed=seed, **SETTINGS)
    train(config, folder)  # unless it is finished
    measured = measure(folder)
    return {
        "filtered": measured["NDCG@10"]["history"],
        "unfiltered": measured["NDCG@10"]["nothing"],
        "last item": measured["repeats"]["last item"],
    }


def table(results: dict[str, dict]) -> str:
    head = [
        "log", "order of ties", "NDCG@10 filtered", "unfiltered", "users who get their last item again",
    ]  # fmt: skip
    rows, notes = [], []
    for file, result in results.items():
        for order, runs in result["orders"].items():
            cells = [mean_and_deviation([run[key] for run in runs]) for key in runs[0]]
            rows.append([file, order, *cells])
        share = result["shares"]
        notes.append(
            f"In {file} {share['interactions']:.0%} of interactions have the time of the one before, and "
            f"so have {share['last']:.0%} of the test items{' (made ties)' if result['made'] else ''}; "
            f"{over_seeds(len(runs))}."
        )
    return "\n".join([*markdown_table(head, rows), "", *notes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    log = read(arguments.file)
    if made := "time" not in log.columns:
        log = with_made_ties(log)
    RUNS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "ties.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[arguments.file.name] = {
        "made": made,
        "shares": shares(log),
        "orders": {
            name: [figures(arguments.file, name, log[rows], seed) for seed in range(arguments.seeds)]
            for name, rows in orders(log).items()
            if not (made and name == "as in the file")  # which knows nothing of these ties
        },
        "settings": SETTINGS,
        "machine": machine(),
        "commit": commit(),
    }
    keep(path.stem, known, table(known))


if __name__ == "__main__":
    main()
