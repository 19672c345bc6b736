"""What each part of AdaptiveRec brings on the built-in data: `python bench/ablation.py [--seeds N]`.

Trains what is missing under runs/ablation and writes bench/results/ablation.json and ablation.md.
The seed makes the data too, so deviations hold both; differences are of runs of the same seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from provenance import RESULTS, commit, keep, machine

from arec.config import Config
from arec.tables import markdown_table, mean_and_deviation, over_seeds
from arec.train import train

RUNS = Path("runs") / "ablation"
VARIANTS = {
    "no contrast": {"lambda_cl": 0.0},
    "NT-Xent": {"method": "duorec"},
    "NT-Xent, known same targets out": {"method": "duorec", "same_target_negatives": False},
    "mask only (Eq. 8)": {"positives": False},
    "mask only, known same targets out": {"positives": False, "same_target_negatives": False},
    "positives (Eq. 9)": {},
    "positives, known same targets out": {"same_target_negatives": False},
    "positives, gradient to k (h = 0.05)": {"threshold_grad": 0.05},
    "mask only, gradient to k (h = 0.05)": {"positives": False, "threshold_grad": 0.05},
}


def metrics_of(name: str, settings: dict, seed: int) -> dict:
    config = Config(**settings, seed=seed)
    folder = RUNS / f"{''.join(c if c.isalnum() else '-' for c in name)}-{seed}"
    return train(config, folder)  # a finished run is only read


def summary(runs: list[dict]) -> dict[str, list[float]]:
    """Figures of every seed."""
    figures = {
        f"NDCG@10 {ranking}": [run["test"][ranking]["NDCG@10"] for run in runs]
        for ranking in ("filtered", "unfiltered")
    }
    for group in ("false_negatives", "simthres"):
        if group in runs[0]:
            for key in runs[0][group]:
                figures[key] = [run[group][key] for run in runs]
    return figures


def table(results: dict[str, dict[str, list[float]]], seeds: int) -> str:
    columns = {
        "NDCG@10 filtered": "NDCG@10 filtered", "gain filtered": "over no contrast",
        "NDCG@10 unfiltered": "NDCG@10 unfiltered", "gain unfiltered": "over no contrast",
        "precision": "precision of M⁺", "base_rate": "by chance", "recall": "recall of M⁺",
        "selected": "by chance", "mean": "k", "std": "spread of k over rows",
        "correlation": "correlation of k with the row's quantile",
    }  # fmt: skip
    base = results["no contrast"]
    rows = []
    for name, figures in results.items():
        cells = {
            key: mean_and_deviation(np.array(values, dtype=float), 3)  # None becomes NaN
            for key, values in figures.items()
        }
        for ranking in ("filtered", "unfiltered") if figures is not base else ():
            gains = np.subtract(figures[f"NDCG@10 {ranking}"], base[f"NDCG@10 {ranking}"])
            sign = "+" if gains.mean() >= 0 else ""
            cells[f"gain {ranking}"] = sign + mean_and_deviation(gains)
        rows.append([name, *(cells.get(column, "") for column in columns)])
    lines = markdown_table(["built-in data", *columns.values()], rows)
    legend = f"{over_seeds(seeds).capitalize()}, default settings otherwise; “over no contrast”: of "
    lines += ["", f"{legend}the difference to that run of the same seed."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="only ablation.md, from ablation.json")
    arguments = parser.parse_args()
    path = RESULTS / "ablation.json"
    if not arguments.table:
        seeds = range(arguments.seeds)
        results = {
            name: summary([metrics_of(name, settings, seed) for seed in seeds])
            for name, settings in VARIANTS.items()
        }
        record = {"machine": machine(), "commit": commit(), "seeds": len(seeds), "results": results}
    else:
        record = json.loads(path.read_text())
    keep(path.stem, record, table(record["results"], record["seeds"]))


if __name__ == "__main__":
    main()
