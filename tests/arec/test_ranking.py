from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import sequences_of

from arec import ranking
from arec.data import builtin
from arec.data.split import LeaveOneOut
from arec.ranking import (
    draw_candidates,
    evaluate_scores,
    popularity_scores,
    rank_targets,
    sampled_ranks,
    target_ranks,
    top_items,
    upper_bound_scores,
    users_at_once,
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
@example(([0.0] * 6, 1, []))  # ties count against the target
@example(([9.0, math.nan, 1.0, 2.0], 1, []))  # NaN is last
@example(([9.0, 1.0, 0.0], 1, []))  # padding is no candidate
@example(([0.0, 1.0, 2.0, 3.0], 1, [1, 3]))  # an excluded target stays one
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


def test_ranks_among_more_items_than_are_compared_at_once():
    scores = torch.randint(100, (3, 2 * ranking._COLUMNS + 5)).float()
    targets = torch.tensor([1, ranking._COLUMNS + 1, 2 * ranking._COLUMNS + 4])
    ahead = scores[:, 1:] >= scores.gather(1, targets[:, None])  # as the target itself is
    assert torch.equal(target_ranks(scores, targets), ahead.sum(dim=1))


def test_scores_are_left_as_they_were():
    scores = torch.rand(3, 8)
    before = scores.clone()
    target_ranks(scores, torch.tensor([1, 2, 3]), torch.ones(3, 2, dtype=torch.int64))
    assert torch.equal(scores, before)


@pytest.fixture
def split() -> LeaveOneOut:
    rng = np.random.default_rng(0)
    users = [rng.permutation(20)[:n] + 1 for n in (3, 2, 9, 5, 1, 12, 3)]
    return LeaveOneOut(sequences_of(*users, num_items=20))


@pytest.mark.parametrize("stage", ["valid", "test"])
def test_both_protocols_in_the_order_of_the_users(split, stage):
    scores = torch.rand(7, 21)
    shuffled = np.array([6, 0, 5, 2, 3])
    batches = [(users, scores[users]) for users in (shuffled[:2], shuffled[2:])]
    ranks, lists = rank_targets(split, stage, batches, top=4)
    for i, user in enumerate(split.eval_users):
        length, target = split.history_lengths(stage)[i], split.targets(stage)[i]
        ahead = {j for j in range(1, 21) if j != target and scores[user, j] >= scores[user, target]}
        assert ranks["unfiltered"][i] == 1 + len(ahead)
        history = set(split.sequences[user][:length].tolist())
        assert ranks["filtered"][i] == 1 + len(ahead - history)
        best = sorted(range(1, 21), key=lambda j: -scores[user, j])
        assert lists["unfiltered"][i].tolist() == best[:4]
        assert lists["filtered"][i].tolist() == [j for j in best if j not in history][:4]


@pytest.mark.parametrize("stage", ["valid", "test"])
@given(scores=st.lists(some_scores, min_size=6, max_size=6))
def test_repeated_items_and_targets_in_the_history(stage, scores):
    users = [[1, 2, 1, 2, 1], [3, 3, 3, 3], [1, 2, 3, 1, 4, 2]]
    split = LeaveOneOut(sequences_of(*users, num_items=5))
    # One row for all users, which cannot be written to.
    rows = torch.tensor(scores).expand(3, -1)
    before = rows.clone()
    ranks, lists = rank_targets(split, stage, [(split.eval_users, rows)], top=3)
    assert torch.equal(rows.nan_to_num(9), before.nan_to_num(9)), "scores are left as they were"
    for i, length in enumerate(split.history_lengths(stage)):
        target = torch.from_numpy(split.targets(stage)[i : i + 1]).long()
        history = torch.tensor([users[i][:length]])
        for name, exclude in {"filtered": history, "unfiltered": None}.items():
            row = rows[i : i + 1]
            assert ranks[name][i] == target_ranks(row, target, exclude)
            # Which of equal scores comes first is open.
            got, best = torch.from_numpy(lists[name][i]).long(), top_items(row, 3, exclude)[0]
            assert row[0, got].nan_to_num(9).tolist() == row[0, best].nan_to_num(9).tolist()
            given = got[got > 0].tolist()
            assert len(set(given)) == len(given) == (best > 0).sum()
            assert exclude is None or not {*given} & {*users[i][:length]}


@given(one_ranking())
def test_rank_among_candidates_counts_those_not_below_the_target(ranking):
    scores, target, candidates = ranking
    candidates = [item for item in candidates if item != target] + [0]
    expected = 1 + sum(item > 0 and not scores[item] < scores[target] for item in candidates)
    got = sampled_ranks(
        torch.tensor([scores]), torch.tensor([target]), torch.tensor([candidates]).long()
    )
    assert got.tolist() == [expected]


@pytest.mark.parametrize("history", [[1, 2], [1, 2, 3, 4]], ids=["one search", "two searches"])
def test_the_best_items_may_all_be_in_the_history(history):
    split = LeaveOneOut(sequences_of([*history, 9, 10], num_items=10))
    scores = torch.arange(11).flip(0)[None].float()  # of item 1 the highest
    _, lists = rank_targets(split, "valid", [(split.eval_users, scores)], top=1)
    assert lists["unfiltered"].tolist() == [[1]]
    assert lists["filtered"].tolist() == [[len(history) + 1]]


def test_top_items_when_few_are_left():
    scores = torch.tensor([[9.0, 1.0, 3.0, 2.0]])
    assert top_items(scores, 10, torch.tensor([[2, 0]])).tolist() == [[3, 1, 0]]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("rest", [0, 1, 127])
def test_top_items_of_many_are_those_of_a_search_in_all(monkeypatch, count, rest):
    monkeypatch.setattr(ranking, "_FEWEST_BLOCKS", 2)
    scores = torch.rand(5, 1 + 6 * 128 + rest)
    scores[1, 300:] = -torch.inf
    scores[2] = -torch.inf  # nothing is left
    scores[3, -1] = 2.0  # the best stands behind the last block
    scores[4, 1:5] = torch.tensor([4.0, 5.0, 6.0, 7.0])  # all in one block
    best = scores[:, 1:].topk(count, dim=1)
    expected = (best.indices + 1).masked_fill(best.values == -torch.inf, 0)
    assert torch.equal(top_items(scores, count), expected)
    assert ranking._largest(scores[:, 1:], count)[1].max() < scores.shape[1] - 1


@pytest.mark.parametrize("stage", ["valid", "test"])
def test_candidates_are_neither_the_target_nor_in_the_history(split, stage):
    drawn = draw_candidates(split, stage, seed=3, batch_size=2)
    counts = split.train_counts()
    for i, user in enumerate(split.eval_users):
        known = set(split.sequences[user][: split.history_lengths(stage)[i]].tolist())
        known.add(int(split.targets(stage)[i]))
        # There are fewer than 100, so that all of them are drawn.
        left = {
            "random-100": set(range(1, 21)) - known,
            "popular-100": set(np.flatnonzero(counts).tolist()) - known,
        }
        for name, expected in left.items():
            row = drawn[name][i].tolist()
            assert set(row[: len(expected)]) == expected
            assert not any(row[len(expected) :])
    again, other = draw_candidates(split, stage, 3, 2), draw_candidates(split, stage, 4, 2)
    for name in drawn:
        assert np.array_equal(drawn[name], again[name])
        assert not np.array_equal(drawn[name], other[name])


def test_candidates_are_drawn_by_popularity_or_uniformly():
    # Item i occurs about i times as often as item 1.
    rng = np.random.default_rng(0)
    weights = np.arange(1, 401) / np.arange(1, 401).sum()
    users = rng.choice(400, size=(2000, 10), p=weights) + 1
    split = LeaveOneOut(sequences_of(*users, num_items=400))
    drawn = draw_candidates(split, "test", seed=0)
    for row in (*drawn["popular-100"][:50], *drawn["random-100"][:50]):
        assert len(set(row.tolist())) == 100, "without replacement"
    half = {name: (sampled <= 200).mean() for name, sampled in drawn.items()}
    assert half["random-100"] == pytest.approx(0.5, abs=0.02)
    first = {name: sampled[:, 0] <= 200 for name, sampled in drawn.items()}
    assert first["popular-100"].mean() == pytest.approx(0.25, abs=0.04)
    assert half["popular-100"] < 0.4


@pytest.mark.parametrize(
    ("tries", "most"),
    [(3, 0), (4, 0), (40, 0), (1, 100)],  # some rows are put in order, some need several rounds
)
def test_candidates_are_drawn_one_after_the_other(monkeypatch, tries, most):
    monkeypatch.setattr(ranking, "SAMPLED", 3)
    monkeypatch.setattr(ranking, "_TRIES", tries)
    monkeypatch.setattr(ranking, "_MOST_TRIES", most)
    weights = np.array([0, 1, 0, 5, 2, 8, 3])
    known = np.tile([4, 0], (50_000, 1))
    drawn = ranking._draw(np.random.default_rng(0), weights.cumsum(), known)
    for order in itertools.permutations([1, 3, 5, 6], 3):
        left, expected = 1 + 5 + 8 + 3, 1.0
        for item in order:
            expected *= weights[item] / left
            left -= weights[item]
        share = (drawn == order).all(axis=1).mean()
        assert share == pytest.approx(expected, abs=4 * (expected / len(drawn)) ** 0.5)


def test_sampled_protocols_stand_beside_the_whole_ranking(split):
    scores = torch.rand(5, 21)
    drawn = draw_candidates(split, "test", seed=0)
    metrics = evaluate_scores(split, "test", lambda part: [(part.eval_users, scores)], drawn)
    assert list(metrics) == ["filtered", "unfiltered", "popular-100", "random-100"]
    # All items that are left are candidates, and repetitions leave the history of nobody here.
    assert metrics["random-100"].items() <= metrics["filtered"].items()
    assert "Coverage@20" in metrics["unfiltered"] and "Coverage@20" not in metrics["random-100"]


def test_lists_are_measured_by_what_is_trained_on():
    # The last two of each are held out.
    split = LeaveOneOut(sequences_of([1, 2, 1, 3], [1, 1, 4, 2], num_items=4))
    metrics = evaluate_scores(
        split, "test", lambda part: [(part.eval_users, torch.tensor([[0.0, 3, 2, 1, 0]] * 2))]
    )
    # Trained on: item 1 three times, item 2 once. Recommended: all four. Chosen: 3 and 2.
    assert metrics["unfiltered"]["PopularityBias@5"] == (3 + 1 + 0 + 0) / 4 / ((0 + 1) / 2)


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


@pytest.mark.parametrize(
    ("num_items", "cpu"), [(20, 64), (1 << 16, 64), (200_000, 20), (1 << 22, 1), (1 << 24, 1)]
)
def test_many_items_are_scored_for_few_users_at_once(num_items, cpu):
    assert users_at_once(num_items) == cpu
    assert users_at_once(num_items, "cuda") == 64


def test_popularity_ranks_by_training_counts(split, monkeypatch):
    monkeypatch.setattr(ranking, "_USERS", 3)
    (users, scores), *rest = popularity_scores(split)
    assert users.tolist() == [0, 2, 3]
    assert len(rest) == 1
    assert torch.equal(scores[1], torch.from_numpy(split.train_counts()).double())


def test_upper_bound_beats_popularity_by_far_and_alike_in_both_protocols():
    split = LeaveOneOut(builtin.generate(seed=1, num_users=500, num_items=200, num_intents=8))
    bound = evaluate_scores(split, "test", lambda part: upper_bound_scores(part, "test"))
    popularity = evaluate_scores(split, "test", popularity_scores)
    assert bound["filtered"] == bound["unfiltered"]
    assert bound["filtered"]["NDCG@10"] > 2 * popularity["filtered"]["NDCG@10"]


def test_upper_bound_needs_planted_truth(split):
    with pytest.raises(ValueError, match="built-in"):
        next(upper_bound_scores(split, "test"))
