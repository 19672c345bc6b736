"""The paper's tables, ours beside what is published, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

# What others have published, whole ranking, leave-one-out, without timestamps.
PUBLISHED = Path(__file__).with_name("published.json")

# Pairs above SimThres, a row. With fewer in every epoch the loss was InfoNCE.
FEWEST_ABOVE = 0.01

_NAMES = {"cl4srec": "CL4SRec", "duorec": "DuoRec", "adaptiverec": "AdaptiveRec"}

# Method and view pairs -> metrics.json of every seed.
Results = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]


def over_seeds(count: int) -> str:
    """What the figures of a table are, by the number of seeds."""
    return f"mean ± standard deviation over {count} seeds" if count > 1 else "one seed"


def mean_and_deviation(figures: Sequence[float] | np.ndarray, digits: int = 4) -> str:
    """Of one seed the figure alone."""
    deviation = f" ± {np.std(figures, ddof=1):.{digits}f}" if len(figures) > 1 else ""
    return f"{np.mean(figures):.{digits}f}{deviation}"


# What a table of runs shows of each: metrics and rankings.
SUMMARY = tuple(product(("NDCG@10", "Recall@10"), ("filtered", "unfiltered")))


def summary(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The test figures of `SUMMARY`, over metrics.json of every seed."""
    return [
        mean_and_deviation([run["test"][ranking][metric] for run in runs])
        for metric, ranking in SUMMARY
    ]


@dataclass(frozen=True)
class Column:
    """A metric of the runs that train on some view pairs."""

    label: str  # as in published.json
    views: str
    ranking: str
    metric: str


@dataclass(frozen=True)
class Table:
    methods: tuple[str, ...]
    columns: tuple[Column, ...]
    datasets: tuple[str, ...]
    protocol: str

    def runs(self) -> list[tuple[str, str]]:
        """Methods and view pairs that the table needs."""
        views = dict.fromkeys(column.views for column in self.columns)
        return list(dict.fromkeys(_key(method, each) for each in views for method in self.methods))


TABLE_METRICS = ("NDCG@5", "NDCG@10", "MRR@5", "MRR@10", "Recall@5", "Recall@10")
_RANKINGS = {"whole": "unfiltered", "popular": "popular-100", "random": "random-100"}
TABLES = {
    "table1": Table(
        ("cl4srec", "duorec", "adaptiverec"),
        tuple(Column(metric, "us_x", "unfiltered", metric) for metric in TABLE_METRICS),
        ("ml-1m", "beauty"),
        "Ranking among all items, the user's history not filtered.",
    ),
    "table2": Table(
        ("duorec", "adaptiverec"),
        tuple(
            Column(f"{name} {views.upper()}", views, ranking, "NDCG@10")
            for name, ranking in _RANKINGS.items()
            for views in ("su", "un", "us_x")
        ),
        ("ml-1m",),
        "NDCG@10; whole: among all items, the user's history not filtered; popular, random: among "
        "100 other items, drawn by popularity or uniformly.",
    ),
}


def published() -> dict[str, Any]:
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))


def to_csv(name: str, dataset: str, results: Results) -> str:
    """Every figure in a line, those of other papers last."""
    table, paper = TABLES[name], published()[name].get(dataset, {})
    theirs, ours = _paper_improvement(paper), _improvement(_means(table, results))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["table", "dataset", "method", "column", "ranking", "metric"]
        + ["seeds", "mean", "deviation", "paper"]
    )
    for method in table.methods:
        for column in table.columns:
            figures = _figures(results, method, column)
            deviation = figures.std(ddof=1) if len(figures) > 1 else ""
            writer.writerow(
                [name, dataset, method, column.label, column.ranking, column.metric]
                + [len(figures), figures.mean(), deviation]
                + [paper.get(method, {}).get(column.label, "")]
            )
    for column in table.columns:
        writer.writerow(
            [name, dataset, "improvement in percent", column.label, column.ranking, column.metric]
            + ["", ours[column.label], "", theirs.get(column.label, "")]
        )
    if name == "table1":
        for row in published()["elsewhere"].get(dataset, []):
            writer.writerow(
                [name, dataset, row["what"], "", row["ranking"], "NDCG@10", "", "", "", row["NDCG@10"]]
            )
    return text.getvalue()


def to_markdown(name: str, dataset: str, results: Results, settings: str) -> str:
    """The table as in the paper, our figures above the paper's.

    Args:
        settings: what was run, in a sentence.
    """
    table, others = TABLES[name], published()
    paper = others[name].get(dataset, {})
    rows = []
    for method in table.methods:
        figures = {column.label: _figures(results, method, column) for column in table.columns}
        rows.append([_NAMES[method], "ours", *map(mean_and_deviation, figures.values())])
        if paper:
            rows.append(["", "paper", *(f"{paper[method][label]:.4f}" for label in figures)])
    rows.append(["Improv.", "ours", *_percents(_improvement(_means(table, results)))])
    if paper:
        whose = "paper" if "improvement" in paper else "paper, computed"
        rows.append(["", whose, *_percents(_paper_improvement(paper))])
    lines = [
        f"## {name.replace('table', 'Table ')}, {dataset}",
        "",
        *markdown_table([dataset, "", *(column.label for column in table.columns)], rows),
        "",
        f"{table.protocol} Improv.: AdaptiveRec over DuoRec. {settings}",
    ]
    lines += with_idle_simthres(run for runs in results.values() for run in runs)
    if paper:
        notes = others["notes"][name].get(dataset, [])
        lines.append(" ".join([f"Paper: {others['source']}.", *notes]))
    if name == "table1":
        lines += ["", *_elsewhere(table, dataset, results, others["elsewhere"].get(dataset, []))]
    return "\n".join(lines) + "\n"


def with_idle_simthres(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line on runs in which SimThres did nothing, where there are some.

    Args:
        runs: metrics.json of each.
    """
    names = ("most_positives_per_row", "most_masked_per_row")
    most = [run[name] for run in runs for name in names if name in run]
    idle = [each for each in most if each < FEWEST_ABOVE]
    if not idle:
        return []
    which = f"In {len(idle)} of {len(most)} runs of AdaptiveRec at most {max(idle):.1g} pairs a row"
    return [f"{which} were above SimThres in any epoch: their loss was InfoNCE."]


def _elsewhere(
    table: Table, dataset: str, results: Results, rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    """In both rankings, a column each: they must never be compared with each other."""
    rankings = ("unfiltered", "filtered")
    body = []
    for method in table.methods:
        columns = (Column("", "us_x", ranking, "NDCG@10") for ranking in rankings)
        ours = (mean_and_deviation(_figures(results, method, column)) for column in columns)
        body.append([f"{_NAMES[method]}, ours", *ours])
    for row in rows:
        figures = (f"{row['NDCG@10']:.4f}" if row["ranking"] == each else "" for each in rankings)
        body.append([row["what"], *figures])
    return markdown_table([f"{dataset}, NDCG@10", *rankings], body)


def _key(method: str, views: str) -> tuple[str, str]:
    """CL4SRec has views of its own."""
    return method, "cl4srec" if method == "cl4srec" else views


def _figures(results: Results, method: str, column: Column) -> np.ndarray:  # (seeds,)
    runs = results[_key(method, column.views)]
    return np.array([metrics["test"][column.ranking][column.metric] for metrics in runs])


def _means(table: Table, results: Results) -> dict[str, dict[str, float]]:
    return {
        method: {c.label: _figures(results, method, c).mean() for c in table.columns}
        for method in table.methods
    }


def _paper_improvement(paper: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    """As printed, or where the paper prints none as its figures have it."""
    return paper.get("improvement") or (_improvement(paper) if paper else {})


def _improvement(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """In percent; NaN over nothing."""
    ours, base = figures["adaptiverec"], figures["duorec"]
    return {k: 100 * (ours[k] / base[k] - 1) if base[k] else np.nan for k in ours}


def _percents(figures: Mapping[str, float]) -> list[str]:
    return [f"{value:+.2f} %" for value in figures.values()]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    cells = ([cell.replace("|", r"\|") for cell in row] for row in (head, ["---"] * len(head), *rows))
    return [f"| {' | '.join(row)} |" for row in cells]
