"""The paper's tables: ours beside theirs, to the letter."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from arec import tables


@pytest.mark.parametrize(
    ("values", "text"),
    [([0.12345], "0.1235"), ([0.1, 0.3], "0.2000 ± 0.1414"), ([1.0, 1.0, 1.0], "1.0000 ± 0.0000")],
)
def test_a_deviation_needs_two_figures(values: list[float], text: str) -> None:
    assert tables.mean_and_deviation(values) == text
    assert tables.over_seeds(len(values)).startswith("one seed" if len(values) == 1 else "mean ±")


def figures(value: float) -> dict:
    metrics = {metric: value for metric in tables.TABLE_METRICS}
    rankings = ("filtered", "unfiltered", "popular-100", "random-100")
    return {"test": {ranking: metrics for ranking in rankings}}


def results_of(name: str, values: dict[str, list[float]]) -> dict:
    """A run for each value of a method."""
    return {key: list(map(figures, values[key[0]])) for key in tables.TABLES[name].runs()}


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_stands_beside_the_paper(name) -> None:
    table = tables.TABLES[name]
    values = {"cl4srec": [0.1, 0.1], "duorec": [0.1, 0.3], "adaptiverec": [0.21, 0.21]}
    results = results_of(name, values)
    for dataset in table.datasets:
        text = tables.to_markdown(name, dataset, results, "")
        head, _, *rows = [
            [cell.strip() for cell in line.split("|")[1:-1]]
            for line in text.split("\n\n")[1].splitlines()
        ]
        assert [row[:2] for row in rows[-4:]] == [
            ["AdaptiveRec", "ours"], ["", "paper"], ["Improv.", "ours"], ["", PAPERS_IMPROVEMENT[name]]
        ]  # fmt: skip
        assert set(rows[-6][2:]) == {"0.2000 ± 0.1414"}, "DuoRec"
        assert set(rows[-2][2:]) == {"+5.00 %"}
        assert len({len(row) for row in (head, *rows)}) == 1
    assert ("chance level" if name == "table2" else "same to the last digit") in text


@pytest.mark.parametrize("most", [0.007, 5.0])
def test_runs_in_which_simthres_did_nothing_are_counted(most) -> None:
    results = {
        key: [figures(0.1) | ({"most_positives_per_row": most} if key[0] == "adaptiverec" else {})]
        for key in tables.TABLES["table1"].runs()
    }
    text = tables.to_markdown("table1", "walks", results, "")
    said = (
        "In 1 of 1 runs of AdaptiveRec at most 0.007 pairs a row were above SimThres in any epoch: their "
        "loss was InfoNCE."
    )
    assert text.count(said) == text.count("their loss was") == (most < 0.01)


def test_the_most_of_idle_runs_is_told() -> None:
    (line,) = tables.with_idle_simthres({"most_masked_per_row": most} for most in (0, 0.009, 5))
    assert line.startswith("In 2 of 3 runs of AdaptiveRec at most 0.009 pairs a row")


def test_the_published_figures_agree_with_themselves() -> None:
    """The paper computed its Improv. column before rounding."""
    published = tables.published()
    for dataset, paper in published["table1"].items():
        computed = tables._improvement(paper)
        assert computed == pytest.approx(paper["improvement"], abs=0.1), dataset
    for name, table in tables.TABLES.items():
        for paper in published[name].values():
            for method in table.methods:
                assert list(paper[method]) == [column.label for column in table.columns]


def test_a_data_set_that_the_paper_has_not() -> None:
    values = {"cl4srec": [0.1], "duorec": [0.1, 0.3], "adaptiverec": [0.21, 0.23]}
    results = results_of("table1", values)
    for run in results["adaptiverec", "us_x"]:
        run["test"]["filtered"] = dict.fromkeys(tables.TABLE_METRICS, 0.5)
    cells = {"cl4srec": "0.1000", "duorec": "0.2000 ± 0.1414", "adaptiverec": "0.2200 ± 0.0141"}
    assert tables.to_markdown("table1", "walks", results, "Settings.").splitlines() == [
        "## Table 1, walks",
        "",
        "| walks |  | NDCG@5 | NDCG@10 | MRR@5 | MRR@10 | Recall@5 | Recall@10 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| CL4SRec | ours | {' | '.join([cells['cl4srec']] * 6)} |",
        f"| DuoRec | ours | {' | '.join([cells['duorec']] * 6)} |",
        f"| AdaptiveRec | ours | {' | '.join([cells['adaptiverec']] * 6)} |",
        f"| Improv. | ours | {' | '.join(['+10.00 %'] * 6)} |",
        "",
        f"{tables.TABLES['table1'].protocol} Improv.: AdaptiveRec over DuoRec. Settings.",
        "",
        "| walks, NDCG@10 | unfiltered | filtered |",
        "| --- | --- | --- |",
        "| CL4SRec, ours | 0.1000 | 0.1000 |",
        "| DuoRec, ours | 0.2000 ± 0.1414 | 0.2000 ± 0.1414 |",
        "| AdaptiveRec, ours | 0.2200 ± 0.0141 | 0.5000 ± 0.0000 |",
    ]


def test_csv_has_every_figure_in_a_line() -> None:
    values = {"cl4srec": [0.1], "duorec": [0.1, 0.3], "adaptiverec": [0.21, 0.23]}
    results = results_of("table1", values)
    head, *rows = csv.reader(tables.to_csv("table1", "beauty", results).splitlines())
    paper = tables.published()["table1"]["beauty"]
    rows = [dict(zip(head, row)) for row in rows]
    of_methods = [row for row in rows if row["method"] in values]
    assert len(of_methods) == 3 * 6
    for row in of_methods:
        own = values[row["method"]]
        assert (int(row["seeds"]), float(row["mean"])) == (len(own), pytest.approx(sum(own) / len(own)))
        assert row["deviation"] == "" if len(own) == 1 else float(row["deviation"]) > 0.01
        assert float(row["paper"]) == paper[row["method"]][row["column"]]
    improvements = [row for row in rows if row["method"] == "improvement in percent"]
    assert [float(row["mean"]) for row in improvements] == [pytest.approx(10)] * 6
    elsewhere = tables.published()["elsewhere"]["beauty"]
    assert [float(row["paper"]) for row in rows[-len(elsewhere) :]] == [
        row["NDCG@10"] for row in elsewhere
    ]
    assert len(rows) == 18 + 6 + len(elsewhere)


PAPERS_IMPROVEMENT = {"table1": "paper", "table2": "paper, computed"}  # Table 2 prints none
RANKINGS = {"whole": "unfiltered", "popular": "popular-100", "random": "random-100"}


def different(name: str) -> tuple[dict, dict]:
    """Runs in which every figure is another one, and what each cell is to be."""
    rng = np.random.default_rng(0)
    rankings = ("filtered", *RANKINGS.values())
    results = {
        key: [{"test": {each: {m: rng.random() for m in tables.TABLE_METRICS} for each in rankings}}]
        for key in tables.TABLES[name].runs()
    }
    cells = {}
    for method in tables.TABLES[name].methods:
        for column in tables.TABLES[name].columns:
            if name == "table1":
                views, ranking, metric = "us_x", "unfiltered", column.label
            else:
                what, views = column.label.lower().split()
                ranking, metric = RANKINGS[what], "NDCG@10"
            views = "cl4srec" if method == "cl4srec" else views
            cells[method, column.label] = results[method, views][0]["test"][ranking][metric]
    return results, cells


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_every_cell_is_of_its_run_its_ranking_and_its_metric(name) -> None:
    results, cells = different(name)
    rows = list(csv.DictReader(tables.to_csv(name, "ml-1m", results).splitlines()))
    got = {(row["method"], row["column"]): float(row["mean"]) for row in rows[: len(cells)]}
    assert got == pytest.approx(cells)
    text = tables.to_markdown(name, "ml-1m", results, "")
    head, _, *body = [[cell.strip() for cell in line.split("|")[1:-1]]
                      for line in text.split("\n\n")[1].splitlines()]  # fmt: skip
    labels, paper = head[2:], tables.published()[name]["ml-1m"]
    for at, method in enumerate(tables.TABLES[name].methods):
        ours, theirs = body[2 * at : 2 * at + 2]
        assert ours[2:] == [f"{cells[method, label]:.4f}" for label in labels]
        assert theirs[2:] == [f"{paper[method][label]:.4f}" for label in labels]
    improved = {x: 100 * (paper["adaptiverec"][x] / paper["duorec"][x] - 1) for x in labels}
    printed = paper.get("improvement", improved)
    assert body[-1] == ["", PAPERS_IMPROVEMENT[name], *(f"{printed[label]:+.2f} %" for label in labels)]


@pytest.mark.parametrize("dataset", ["ml-1m", "beauty"])
def test_figures_of_elsewhere_stand_under_their_ranking(dataset) -> None:
    text = tables.to_markdown("table1", dataset, different("table1")[0], "")
    assert f"| {dataset}, NDCG@10 | unfiltered | filtered |" in text
    for row in tables.published()["elsewhere"][dataset]:
        figure = f"{row['NDCG@10']:.4f}"
        cells = f"{figure} | " if row["ranking"] == "unfiltered" else f" | {figure}"
        assert f"| {row['what']} | {cells} |" in text
