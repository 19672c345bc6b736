from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arec.data import builtin
from arec.data.interactions import Sequences
from arec.data.split import LeaveOneOut
from arec.ranking import (
    evaluate_scores,
    oracle_scores,
    popularity_scores,
    rank_targets,
    target_ranks,
)

# Few distinct values, so that ties and NaN are the rule.
some_scores = st.sampled_from([-1.0, 0.0, 1.0, 2.0, math.inf, -math.inf, math.nan])


@st.composite
def one_ranking(draw):
    num_items = draw(st.integers(1, 12))
    scores = draw(st.lists(some_scores, min_size=num_items + 1, max_size=num_items + 1))
    target = draw(st.integers(1, num_items))
    exclude = draw(st.lists(st.integers(0, num_items), max_size=8))
    return scores, target, exclude


@given(one_ranking())
def test_rank_counts_the_other_candidates_not_below_the_target(ranking):
    scores, target, exclude = ranking
    expected = 1
    for item in range(1, len(scores)):
        if item != target and item not in exclude and not scores[item] < scores[target]:
            expected += 1
    got = target_ranks(
        torch.tensor([scores]), torch.tensor([target]), torch.tensor([exclude]).long()
    )
    assert got.tolist() == [expected]


def test_ties_count_against_the_target():
    assert target_ranks(torch.zeros(2, 6), torch.tensor([1, 5])).tolist() == [5, 5]


def test_nan_target_is_last():
    scores = torch.tensor([[9.0, math.nan, 1.0, 2.0]])
    assert target_ranks(scores, torch.tensor([1])).tolist() == [3]


def test_padding_is_no_candidate():
    assert target_ranks(torch.tensor([[9.0, 1.0, 0.0]]), torch.tensor([1])).tolist() == [1]


def test_excluded_target_stays_a_candidate():
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert target_ranks(scores, torch.tensor([1]), torch.tensor([[1, 3]])).tolist() == [2]


def test_scores_are_left_as_they_were():
    scores = torch.rand(3, 8)
    before = scores.clone()
    target_ranks(scores, torch.tensor([1, 2, 3]), torch.ones(3, 2, dtype=torch.int64))
    assert torch.equal(scores, before)


@pytest.fixture
def split() -> LeaveOneOut:
    rng = np.random.default_rng(0)
    users = [rng.permutation(20)[:n] + 1 for n in (3, 2, 9, 5, 1, 12, 3)]
    return LeaveOneOut(
        Sequences(
            name="random",
            items=np.concatenate(users).astype(np.int32),
            offsets=np.cumsum([0, *map(len, users)]),
            item_ids=np.array([str(i) for i in range(20)], dtype=object),
            user_ids=np.array([str(i) for i in range(7)], dtype=object),
        )
    )


@pytest.mark.parametrize("stage", ["valid", "test"])
def test_both_protocols_in_the_order_of_the_users(split, stage):
    scores = torch.rand(7, 21)
    shuffled = np.array([6, 0, 5, 2, 3])
    batches = [(users, scores[users]) for users in (shuffled[:2], shuffled[2:])]
    ranks = rank_targets(split, stage, batches)
    for i, user in enumerate(split.eval_users):
        length, target = split.history_lengths(stage)[i], split.targets(stage)[i]
        ahead = {j for j in range(1, 21) if j != target and scores[user, j] >= scores[user, target]}
        assert ranks["unfiltered"][i] == 1 + len(ahead)
        history = set(split.sequences[user][:length].tolist())
        assert ranks["filtered"][i] == 1 + len(ahead - history)


def test_users_must_come_once_each(split):
    def batch(*users):
        return np.array(users), torch.rand(len(users), 21)

    with pytest.raises(ValueError, match="2 of 5 users are missing"):
        rank_targets(split, "test", [batch(0, 2, 3)])
    with pytest.raises(ValueError, match="twice"):
        rank_targets(split, "test", [batch(0, 2), batch(3, 2)])
    with pytest.raises(ValueError, match="twice"):
        rank_targets(split, "test", [batch(0, 0)])
    for stranger in (1, 7):
        with pytest.raises(ValueError, match="not in split.eval_users"):
            rank_targets(split, "test", [batch(0, stranger)])


def test_popularity_ranks_by_training_counts(split):
    (users, scores), *rest = popularity_scores(split, batch_size=3)
    assert users.tolist() == [0, 2, 3]
    assert len(rest) == 1
    assert torch.equal(scores[1], torch.from_numpy(split.train_counts()).double())


def test_oracle_beats_popularity_by_far_and_alike_in_both_protocols():
    split = LeaveOneOut(builtin.generate(seed=1, num_users=500, num_items=200, num_intents=8))
    oracle = evaluate_scores(split, "test", oracle_scores(split, "test"))
    popularity = evaluate_scores(split, "test", popularity_scores(split))
    assert oracle["filtered"] == oracle["unfiltered"]
    assert oracle["filtered"]["NDCG@10"] > 2 * popularity["filtered"]["NDCG@10"]


def test_oracle_needs_planted_truth(split):
    with pytest.raises(ValueError, match="built-in"):
        next(oracle_scores(split, "test"))
