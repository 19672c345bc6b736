from __future__ import annotations

import numpy as np
import pytest
from tiny import sequences_of

from arec.data.interactions import Sequences
from arec.data.split import LeaveOneOut


def test_last_item_is_test_and_the_one_before_validation():
    split = LeaveOneOut(sequences_of([1, 2, 3, 4], [5, 6], [7, 8, 9], [1]))
    assert split.eval_users.tolist() == [0, 2]
    assert split.targets("valid").tolist() == [3, 8]
    assert split.targets("test").tolist() == [4, 9]
    assert split.history_lengths("valid").tolist() == [2, 1]
    assert split.history_lengths("test").tolist() == [3, 2]


def test_short_users_train_with_everything_and_are_counted():
    split = LeaveOneOut(sequences_of([1, 2, 3, 4], [5, 6], [7, 8, 9], [1], []))
    assert split.train_lengths.tolist() == [2, 2, 1, 1, 0]
    assert split.num_train_only == 3


def test_repeated_is_the_share_of_test_targets_in_their_history():
    split = LeaveOneOut(sequences_of([], [1, 2, 1], [5, 5], [1, 2, 3], [4, 4, 5], [6, 6, 6, 6], []))
    assert split.repeated() == 2 / 4


def test_history_never_holds_the_target_position():
    split = LeaveOneOut(sequences_of([1, 2, 3, 4, 5], [5, 6, 7]))
    for stage in ("valid", "test"):
        for user, length, target in zip(
            split.eval_users, split.history_lengths(stage), split.targets(stage), strict=True
        ):
            assert split.sequences[user][length] == target


def test_train_counts_are_of_the_training_part_only():
    users = [[1, 2, 1, 2, 3], [3, 3], [], [4, 5, 6], [2]]
    expected = np.zeros(10, dtype=int)
    for part in ([1, 2, 1], [3, 3], [4], [2]):
        for item in part:
            expected[item] += 1
    assert LeaveOneOut(sequences_of(*users)).train_counts().tolist() == expected.tolist()


def test_unknown_stage_is_refused():
    split = LeaveOneOut(sequences_of([1, 2, 3]))
    with pytest.raises(ValueError, match="stage"):
        split.targets("train")
    with pytest.raises(ValueError, match="stage"):
        split.history_lengths("train")


def test_fewer_users_to_rank():
    split = LeaveOneOut(sequences_of(*[[1, 2, 3 + user % 7] for user in range(50)]))
    few = split.for_at_most(10, seed=0)
    assert len(few.eval_users) == 10 and (np.diff(few.eval_users) > 0).all()
    assert few.targets("test").tolist() == [3 + user % 7 for user in few.eval_users]
    assert few.train_lengths is split.train_lengths
    assert few.eval_users.tolist() == split.for_at_most(10, seed=0).eval_users.tolist()
    assert few.eval_users.tolist() != split.for_at_most(10, seed=1).eval_users.tolist()
    assert len(split.eval_users) == 50
    for enough in (50, 51, None):
        assert split.for_at_most(enough, seed=0) is split


def test_arrays_cannot_be_written():
    sequences = sequences_of([1, 2, 3])
    split = LeaveOneOut(sequences)
    for array in (
        sequences.items,
        sequences.offsets,
        sequences.item_ids,
        sequences.user_ids,
        sequences[0],
        split.train_lengths,
        split.eval_users,
    ):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_sequences_are_a_sequence() -> None:
    sequences = sequences_of([1, 2], [], [3])
    assert len(sequences) == 3
    assert [items.tolist() for items in sequences] == [[1, 2], [], [3]]
    assert [sequences[user].tolist() for user in (-1, -2, -3)] == [[3], [], [1, 2]]
    for user in (3, -4):
        with pytest.raises(IndexError):
            sequences[user]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"items": np.array([1, 2, 10], dtype=np.int32)}, "items"),
        ({"items": np.array([0, 2, 3], dtype=np.int32)}, "items"),
        ({"items": np.array([1, 2, 3])}, "items"),
        ({"offsets": np.array([0, 2])}, "offsets"),
        ({"offsets": np.array([0, 1, 3])}, "offsets"),
        ({"offsets": np.array([0, 3], dtype=np.int32)}, "offsets"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    parts = vars(sequences_of([1, 2, 3])) | change
    with pytest.raises(ValueError, match=message):
        Sequences(**parts)


def test_the_users_to_rank_are_the_split_s_own_copy() -> None:
    split = LeaveOneOut(sequences_of([1, 2, 3], [4, 5, 6]))
    users = np.array([1])
    fewer = split.for_users(users)
    users[0] = 0
    assert fewer.eval_users.tolist() == [1]
