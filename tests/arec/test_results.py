"""The table that people see."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import config_of, histories, planted

from arec.objectives import build_objective
from arec.ranking import draw_candidates, evaluate_scores, popularity_scores, upper_bound_scores
from arec.results import final_metrics, format_results
from arec.tables import TABLE_METRICS

TEST = {"filtered": {"NDCG@10": 0.5}}


def test_a_row_for_each_protocol_and_what_it_means() -> None:
    figures = {name: at / 10 for at, name in enumerate(TABLE_METRICS)}
    metrics = {
        "test": {"filtered": figures}, "popularity": {"random-100": figures},
        "upper_bound": {"unfiltered": figures},
    }  # fmt: skip
    head, *rows = format_results(metrics).splitlines()
    assert head.split() == list(TABLE_METRICS)
    numbers = "     0.0000     0.1000     0.2000     0.3000     0.4000     0.5000"
    named = ("test (filtered)", "popularity (random-100)", "upper bound (unfiltered)")
    assert rows[:3] == [f"{name:26}{numbers}" for name in named]
    explained = [row.partition(":")[0] for row in rows[3:]]
    assert explained == ["filtered", "popular-100, random-100"]
    figures |= {"Coverage@10": 0.25, "PopularityBias@10": 1.5}
    assert f"{'test (filtered)':26}     0.2500     1.5000" in format_results(metrics).splitlines()


@pytest.mark.parametrize(("correlation", "said"), [(None, "no correlation"), (-0.25, "correlation: -0.25")])
def test_what_simthres_found(correlation: float | None, said: str) -> None:
    metrics = {
        "false_negatives": {"precision": 0.25, "recall": 0.5, "base_rate": 0.125, "selected": 0.0625},
        "simthres": {"mean": 0.75, "std": 0.01, "quantile_std": 0.02, "correlation": correlation},
    }
    lines = format_results(metrics).splitlines()
    assert f"{'above SimThres':26}     0.2500     0.5000" in lines
    assert f"{'random, as many':26}     0.1250     0.0625" in lines
    assert lines[-2:] == [
        "SimThres, mean and deviation over rows: 0.7500 ± 0.0100",
        f"deviation of each row's own quantile: 0.0200; {said}",
    ]
    assert "SimThres" not in format_results({})
    metrics["false_negatives"] = {"precision": 0.0, "recall": 0.0, "base_rate": 0.125, "selected": 0.0}
    assert f"{'above SimThres':26}          -     0.0000" in format_results(metrics).splitlines()


def test_the_figures_beside_the_model_s_are_of_the_test_items() -> None:
    split = planted()
    candidates = draw_candidates(split, "test", 0)
    metrics = final_metrics(build_objective(config_of(method="sasrec"), 100), split, candidates, TEST)
    assert metrics["test"] == TEST
    assert metrics["popularity"] == evaluate_scores(split, "test", popularity_scores, candidates)
    assert metrics["upper_bound"] == evaluate_scores(
        split, "test", lambda part: upper_bound_scores(part, "test"), candidates
    )


@pytest.mark.parametrize("fewest", [100, 99])
def test_the_legend_says_when_there_are_too_few_items_to_draw(fewest: int) -> None:
    split = histories()
    users = len(split.eval_users)
    sampled = np.ones((users, 100), np.int32)
    sampled[-1, fewest:] = 0
    objective = build_objective(config_of(method="sasrec"), 20)
    metrics = final_metrics(objective, split, {"random-100": sampled}, {})
    assert ("fewest_candidates" in metrics) is (fewest < 100)
    assert (f" {fewest} at the least" in format_results(metrics)) is (fewest < 100)


def test_only_a_learnable_simthres_has_a_spread() -> None:
    split = histories()
    for simthres in ("learnable", "row", "epoch"):
        objective = build_objective(config_of(simthres=simthres), 20)
        metrics = final_metrics(objective, split, draw_candidates(split, "test", 0), {})
        assert ("simthres" in metrics) is (simthres == "learnable")
