from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import sequences_of

from arec.data.split import LeaveOneOut
from arec.positives import TargetIndex

users_of_items = st.lists(st.lists(st.integers(1, 6), max_size=8), min_size=1, max_size=7)


def split_of(users: list[list[int]]) -> LeaveOneOut:
    users = [*users, [1, 2, 3]]  # somebody to rank: the training part has one item and no target
    return LeaveOneOut(sequences_of(*users, num_items=6))


def partners(users: list[list[int]], split: LeaveOneOut, target: int, user: int) -> set[int]:
    """Flat positions of the same target in others' training parts, at least one item before."""
    return {
        int(split.sequences.offsets[other]) + position
        for other, items in enumerate([*users, [1, 2, 3]])
        for position in range(1, int(split.train_lengths[other]))
        if other != user and items[position] == target
    }


@given(users_of_items, st.integers(1, 6), st.integers(0, 6), st.integers(0, 99))
def test_draws_only_and_all_of_the_others(users, target, user, seed) -> None:
    split = split_of(users)
    user = user % len(users)
    expected = partners(users, split, target, user)
    positions, owners = TargetIndex(split).sample(
        np.full(200, target), np.full(200, user), np.random.default_rng(seed)
    )
    assert set(positions.tolist()) <= (expected or {-1})
    if len(expected) <= 4:  # 200 draws miss one of four with probability below 1e-24
        assert set(positions.tolist()) == (expected or {-1})
    for position, owner in zip(positions, owners):
        if position >= 0:
            assert split.sequences.offsets[owner] <= position < split.sequences.offsets[owner + 1]


@pytest.mark.parametrize(("others", "expected"), [([], -1), ([[1, 2]], 3)])
def test_nobody_is_a_partner_to_themselves(others, expected) -> None:
    split = split_of([[5, 2], *others])  # of two items both are trained on
    positions, owners = TargetIndex(split).sample(
        np.array([2]), np.array([0]), np.random.default_rng(0)
    )
    assert positions.tolist() == [expected] and owners.tolist() == [min(expected, 1)]


def test_draws_are_uniform() -> None:
    users = [[1, 2, 1, 1]] + [[1, 2, 3, 3]] * 4 + [[3, 2, 2, 3, 3]]  # target 2: 1 + 4 + 2 times
    split = split_of(users)
    positions, _ = TargetIndex(split).sample(
        np.full(60_000, 2), np.full(60_000, 5), np.random.default_rng(0)
    )
    _, counts = np.unique(positions, return_counts=True)
    assert len(counts) == 5
    assert counts == pytest.approx(12_000, rel=0.05)
