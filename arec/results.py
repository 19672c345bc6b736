"""The figures of a finished run, and the table that people see."""

from __future__ import annotations

from typing import Any

from arec import parallel
from arec.data.split import LeaveOneOut
from arec.detection import false_negative_detection, simthres_spread
from arec.objectives import Objective
from arec.ranking import SAMPLED, Candidates, evaluate_scores, popularity_scores, upper_bound_scores
from arec.tables import TABLE_METRICS
from arec.trainer import training_batches

_SPREAD_ROWS = 4096
_ROWS = {"test": "test", "popularity": "popularity", "upper_bound": "upper bound"}


def final_metrics(
    objective: Objective,
    split: LeaveOneOut,
    candidates: Candidates,
    test: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """Test figures, those of the popularity baseline, and what planted data add.

    Args:
        candidates: of the test stage, see :func:`arec.ranking.rank_shared`.
        test: the model's test figures.

    Returns:
        ``test``, ``popularity`` and, with planted truth, ``upper_bound``: each
        ``{protocol: metrics}``, see :func:`evaluate_scores`. With planted truth and AdaptiveRec also
        ``false_negatives``, see :func:`false_negative_detection`; with a learnable SimThres
        ``simthres``, see :func:`simthres_spread`. ``fewest_candidates`` where some user has fewer
        than 100 sampled ones: how many the user with the fewest has.
    """
    metrics: dict[str, Any] = {
        "test": test,
        "popularity": evaluate_scores(split, "test", popularity_scores, candidates),
    }
    if split.sequences.planted is not None:
        metrics["upper_bound"] = evaluate_scores(
            split, "test", lambda part: upper_bound_scores(part, "test"), candidates
        )
    there = [(sampled > 0).sum(axis=1).min(initial=SAMPLED) for sampled in candidates.values()]
    fewest = parallel.smallest(int(min(there)))
    if fewest < SAMPLED:
        metrics["fewest_candidates"] = fewest
    config = objective.config
    if config.has_simthres:
        batches = training_batches(config, split)
        if split.sequences.planted is not None:
            metrics["false_negatives"] = false_negative_detection(objective, batches.epoch(0))
        if config.learns_simthres:
            metrics["simthres"] = simthres_spread(objective, batches.sample(_SPREAD_ROWS))
    return metrics


def format_results(metrics: dict[str, Any]) -> str:
    """A table for the terminal, of what :func:`final_metrics` returns."""
    lines = [f"{'':26}" + "".join(f"{name:>11}" for name in TABLE_METRICS)]
    for row, label in _ROWS.items():
        for protocol, figures in metrics.get(row, {}).items():
            name = f"{label} ({protocol})"
            lines.append(f"{name:26}" + "".join(f"{figures[metric]:11.4f}" for metric in TABLE_METRICS))
    lines += [
        "filtered: the rest of the user's own history is not ranked; unfiltered: every item is;",
        "popular-100, random-100: 100 items drawn by popularity or uniformly are, and the target",
    ]
    if "fewest_candidates" in metrics:
        lines.append(
            f"for some users fewer than {SAMPLED} items are left to draw, "
            f"{metrics['fewest_candidates']} at the least; "
            "where random-100 has all of them, its rank is the filtered one; popular-100 never has an "
            "item that nobody is trained on"
        )
    of_lists = [
        f"{f'{label} ({protocol})':26}{figures['Coverage@10']:11.4f}{figures['PopularityBias@10']:11.4f}"
        for row, label in _ROWS.items()
        for protocol, figures in metrics.get(row, {}).items()
        if "Coverage@10" in figures
    ]
    if of_lists:
        lines += [
            "",
            f"{'the first 10 items':26}{'coverage':>11}{'popularity':>11}",
            *of_lists,
            "coverage: the share of all items that somebody gets; popularity: how often those that users",
            "get occur in training, over those that they chose",
        ]
    if "false_negatives" in metrics:
        found = metrics["false_negatives"]
        precision = f"{found['precision']:.4f}" if found["selected"] else "-"
        lines += [
            "",
            f"{'false negatives':26}{'precision':>11}{'recall':>11}",
            f"{'above SimThres':26}{precision:>11}{found['recall']:11.4f}",
            f"{'random, as many':26}{found['base_rate']:11.4f}{found['selected']:11.4f}",
            "a pair of sequences is a true one when the same planted intent makes both targets;",
            "the precision of a random mask is the base rate",
        ]
    if k := metrics.get("simthres"):
        correlation = k["correlation"]
        followed = "no correlation" if correlation is None else f"correlation: {correlation:.2f}"
        lines += [
            "",
            f"SimThres, mean and deviation over rows: {k['mean']:.4f} ± {k['std']:.4f}",
            f"deviation of each row's own quantile: {k['quantile_std']:.4f}; {followed}",
        ]
    return "\n".join(lines)
