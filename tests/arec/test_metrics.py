from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG

from arec.metrics import listed, metrics_from_lists, metrics_from_ranks
from arec.ranking import target_ranks


def test_known_values():
    metrics = metrics_from_ranks(np.array([1, 3, 6]), cutoffs=(5,))
    assert metrics == pytest.approx(
        {"NDCG@5": (1 + 0.5) / 3, "MRR@5": (1 + 1 / 3) / 3, "Recall@5": 2 / 3}
    )


def test_keys_follow_the_cutoffs():
    assert list(metrics_from_ranks(np.array([1]), (10, 5))) == [
        f"{name}@{k}" for k in (10, 5) for name in ("NDCG", "MRR", "Recall")
    ]


@pytest.mark.parametrize("cutoff", [1, 5, 10, 50])
def test_agrees_with_torchmetrics_on_random_scores(cutoff):
    users, num_items = 40, 60
    generator = torch.Generator().manual_seed(cutoff)
    scores = torch.rand(users, num_items + 1, generator=generator)
    targets = torch.randint(1, num_items + 1, (users,), generator=generator)
    ours = metrics_from_ranks(target_ranks(scores, targets), (cutoff,))

    candidates = scores[:, 1:].flatten()
    relevant = torch.nn.functional.one_hot(targets - 1, num_items).flatten()
    queries = torch.arange(users).repeat_interleave(num_items)
    for name, metric in {
        "NDCG": RetrievalNormalizedDCG(top_k=cutoff),
        "MRR": RetrievalMRR(top_k=cutoff),
        "Recall": RetrievalHitRate(top_k=cutoff),
    }.items():
        theirs = metric(candidates, relevant, indexes=queries).item()
        assert ours[f"{name}@{cutoff}"] == pytest.approx(theirs, abs=1e-6), name


@given(st.lists(st.integers(1, 30), min_size=1))
def test_better_ranks_never_score_less(ranks):
    ranks = np.array(ranks)
    metrics, better = metrics_from_ranks(ranks), metrics_from_ranks(np.maximum(ranks - 1, 1))
    for name, value in metrics.items():
        assert 0 <= value <= better[name] <= 1
    for k in (5, 10):
        assert metrics[f"MRR@{k}"] <= metrics[f"NDCG@{k}"] <= metrics[f"Recall@{k}"]


@pytest.mark.parametrize("ranks", [[], [0, 1], [[1, 2]]])
def test_what_is_no_rank_is_refused(ranks):
    with pytest.raises(ValueError, match="ranks"):
        metrics_from_ranks(np.array(ranks, dtype=np.int64))


def test_cutoff_below_one_is_refused():
    with pytest.raises(ValueError, match="cutoffs"):
        metrics_from_ranks(np.array([1]), (5, 0))


def test_known_lists():
    counts = np.array([0, 8, 4, 2, 0])
    lists = np.array([[1, 2, 0], [1, 3, 4]])
    metrics = metrics_from_lists(listed(lists, 4, (1, 3)), np.array([2, 4]), counts, (1, 3))
    assert metrics == pytest.approx(
        {
            "Coverage@1": 1 / 4,
            "PopularityBias@1": 8 / 2,
            "Coverage@3": 1,
            "PopularityBias@3": (8 + 4 + 8 + 2 + 0) / 5 / 2,
        }
    )


def test_lists_of_nothing_are_no_error():
    metrics = metrics_from_lists(listed(np.zeros((2, 3), int), 1, (3,)), np.array([1, 1]), np.array([0, 0]), (3,))
    assert metrics == {"Coverage@3": 0, "PopularityBias@3": 0}


def test_ratios_of_lists_count_what_is_given():
    given, counts = listed(np.array([[1, 0, 0], [0, 0, 0]]), 2, (3,)), np.array([0, 6, 2])
    metrics = metrics_from_lists(given, np.array([1, 2]), counts, (3,))
    assert metrics == {"Coverage@3": 0.5, "PopularityBias@3": 6 / 4}
    never_trained_on = metrics_from_lists(given, np.array([1, 2]), np.zeros(3, int), (3,))
    assert never_trained_on == {"Coverage@3": 0.5, "PopularityBias@3": 0.0}
