"""What an unfiltered ranking loses to items that the user already had: `python bench/repeats.py RUN [RUN ...]`.

Ranks the test targets of finished runs with the user's last item left out, the last ten, all that the
model sees, and the whole history (which is the filtered ranking); and counts from where in the
history the repeated items among the first ten come. Adds the runs to bench/results/repeats.json and
writes repeats.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from provenance import RESULTS, commit, keep, machine

from arec.checkpoint import load_run
from arec.data.batches import gather_windows
from arec.data.split import LeaveOneOut
from arec.metrics import metrics_from_ranks
from arec.ranking import target_ranks, top_items
from arec.scoring import score_batches
from arec.tables import markdown_table

TOP = 10


def latest(split: LeaveOneOut, rows: np.ndarray, skip: int, end: int | None) -> torch.Tensor:
    """(B, longest) items from the skip-th last to before the end-th last of histories of `eval_users`."""
    ends = np.maximum(split.history_lengths("test")[rows] - skip, 0)
    count = ends if end is None else np.minimum(ends, end - skip)
    starts = split.sequences.offsets[split.eval_users[rows]]
    return gather_windows(split.sequences.items, starts + ends, count)


def measure(run: Path) -> dict:
    """NDCG@10 by what is left out, and repeated items among a user's first ten by where they stand."""
    _, split, objective = load_run(run)
    window = objective.encoder.max_length
    depths = {"nothing": 0, "last item": 1, "last 10": 10, "window": window, "history": None}
    places = {"last item": (0, 1), "9 before": (1, 10), "rest of window": (10, window),
              "before it": (window, None)}  # fmt: skip
    targets = split.targets("test")
    ranks: dict[str, list] = {name: [] for name in depths}
    repeats = dict.fromkeys(places, 0)
    for users, scores in score_batches(objective, split, "test"):
        rows = np.searchsorted(split.eval_users, users)
        target = torch.from_numpy(targets[rows].astype(np.int64))
        for name, depth in depths.items():
            ranks[name].append(target_ranks(scores, target, latest(split, rows, 0, depth)))
        best = top_items(scores, TOP)
        for name, (skip, end) in places.items():
            had = torch.zeros_like(scores, dtype=torch.bool)
            had.scatter_(1, latest(split, rows, skip, end), True)
            had[:, 0] = False
            repeats[name] += int(had.gather(1, best).sum())
    return {
        "window": window,
        "NDCG@10": {
            name: metrics_from_ranks(torch.cat(parts).numpy())["NDCG@10"]
            for name, parts in ranks.items()
        },
        "repeats": {name: count / len(split.eval_users) for name, count in repeats.items()},
        "machine": machine(),
        "commit": commit(),
    }


def table(runs: dict[str, dict]) -> str:
    left_out = list(next(iter(runs.values()))["NDCG@10"])
    places = list(next(iter(runs.values()))["repeats"])
    head = ["run", *left_out, *places]
    head[1] = f"NDCG@10, left out: {left_out[0]}"
    head[1 + len(left_out)] = f"repeats in the first 10: {places[0]}"
    rows = []
    for name, run in sorted(runs.items()):
        cells = [f"{run['NDCG@10'][key]:.4f}" for key in left_out]
        cells += [f"{run['repeats'][key]:.2f}" for key in places]
        rows.append([f"`{name}`", *cells])
    lines = markdown_table(head, rows)
    lines += ["", "Test figures; “window” is what the model sees of the history. Repeats are means over users."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    path = RESULTS / "repeats.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for run in parser.parse_args().runs:
        known[run.name] = measure(run)
    keep(path.stem, known, table(known))


if __name__ == "__main__":
    main()
