from __future__ import annotations

import numpy as np
import pytest

from arec.data import builtin
from arec.data.split import LeaveOneOut
from arec.errors import DataError


@pytest.fixture(scope="module")
def sequences():
    return builtin.generate(seed=3)


def test_same_seed_same_data_and_other_seed_other_data(sequences):
    again, other = builtin.generate(seed=3), builtin.generate(seed=4)
    assert np.array_equal(sequences.items, again.items)
    assert np.array_equal(sequences.planted.intents, again.planted.intents)
    assert not np.array_equal(sequences.items[:1000], other.items[:1000])


@pytest.mark.parametrize("seed", range(8))
def test_needs_no_5_core_filter(seed):
    sequences = builtin.generate(seed, k_core=1)
    assert sequences.lengths.min() >= 5
    assert np.bincount(sequences.items, minlength=sequences.num_items + 1)[1:].min() >= 5


def test_higher_core_is_refused():
    with pytest.raises(DataError, match="k_core"):
        builtin.generate(seed=3, k_core=50)


def test_nobody_has_an_item_twice(sequences):
    for user in range(sequences.num_users):
        assert len(np.unique(sequences[user])) == len(sequences[user])


def test_followers_come_next(sequences):
    """More often than after an item between, which has the same intent mostly."""
    users = np.repeat(np.arange(sequences.num_users), sequences.lengths)

    def followed(steps: int) -> float:
        before, after = sequences.items[:-steps], sequences.items[steps:]
        found = (sequences.planted.followers[before] == after[:, None]).any(axis=1)
        return found[users[:-steps] == users[steps:]].mean()

    assert followed(1) > 3 * followed(2)


def test_popularity_has_a_long_tail(sequences):
    counts = np.sort(np.bincount(sequences.items)[1:])[::-1]
    assert counts[: len(counts) // 5].sum() > 0.4 * counts.sum()
    assert counts[0] > 10 * np.median(counts[-60:])


def test_intents_are_aligned_with_the_interactions(sequences):
    """An item comes from an intent that prefers it far more often than from a shuffled one."""
    planted = sequences.planted
    assert planted.intents.shape == sequences.items.shape
    preferred = planted.preference > 2 * planted.preference[:, 1:].min()
    own = preferred[planted.intents, sequences.items].mean()
    shuffled = np.random.default_rng(0).permutation(planted.intents)
    assert own > 0.9
    assert preferred[shuffled, sequences.items].mean() < 0.3


def test_intents_dwell(sequences):
    intents, starts = sequences.planted.intents, sequences.offsets[1:-1]
    same = np.delete(intents[1:] == intents[:-1], starts - 1)
    assert 0.85 < same.mean() < 0.95


def test_probabilities_are_those_of_the_next_item(sequences):
    """Calibration: over many draws the target gets the probability it was drawn with."""
    split, truth = LeaveOneOut(sequences), sequences.planted
    users, lengths = split.eval_users, split.history_lengths("test")
    probabilities = truth.next_item_probabilities(sequences, users, lengths)
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert not probabilities[:, 0].any()
    for row, (user, length) in enumerate(zip(users[:50], lengths, strict=False)):
        assert not probabilities[row, sequences[user][:length]].any()
    hits = np.zeros(probabilities.shape)
    np.put_along_axis(hits, split.targets("test")[:, None], 1, axis=1)
    for low, high in ((1e-4, 0.01), (0.01, 0.05), (0.05, 0.2), (0.2, 1)):
        inside = (low <= probabilities) & (probabilities < high)
        expected, got = probabilities[inside].sum(), hits[inside].sum()
        assert abs(got - expected) < 4 * np.sqrt(expected)


def test_truth_cannot_be_written(sequences):
    with pytest.raises(ValueError, match="read-only"):
        sequences.planted.intents[0] = 1


def test_fewer_items_than_the_longest_sequence_has() -> None:
    with pytest.raises(DataError, match="num_items: expected at least 100, .* got 80"):
        builtin.generate(num_users=60, num_items=80, num_intents=4, k_core=1)


def test_the_order_of_users_tells_nothing() -> None:
    lengths = builtin.generate(seed=3).lengths
    first, second = np.split(lengths, 2)
    assert abs(first.mean() - second.mean()) < 4 * lengths.std() * (2 / len(first)) ** 0.5
