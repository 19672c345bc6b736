"""Leave-one-out: the last item of a user is for testing, the one before for validation."""

from __future__ import annotations

import copy
from typing import Literal

import numpy as np

from arec.data.interactions import Sequences
from arec.errors import DataError

Stage = Literal["valid", "test"]

# From the end of a user's sequence.
_TARGET_POSITION = {"valid": 2, "test": 1}


class LeaveOneOut:
    """Who is trained and ranked on what.

    Of n >= 3 items of a user the first n - 2 are for training, item n - 1 is the validation target
    and item n the test target. Users with fewer than 3 items train with all they have and are
    ranked at no stage.

    Attributes:
        sequences: the data that is split, shared and not copied.
        train_lengths: (U,) int64, the first so many items of each user are for training.
        eval_users: (E,) int64, users with 3 items or more, ascending.
        num_train_only: number of the other users; of a single item there is nothing to train.

    Raises:
        DataError: no user has 3 items.
    """

    def __init__(self, sequences: Sequences) -> None:
        lengths = sequences.lengths
        evaluated = lengths >= 3
        self.sequences = sequences
        self.train_lengths = np.where(evaluated, lengths - 2, lengths)
        self.eval_users = np.flatnonzero(evaluated)
        self.num_train_only = sequences.num_users - len(self.eval_users)
        if not len(self.eval_users):
            raise DataError(
                f"{sequences.name}: no user has 3 items, so there is none to validate or test with"
            )
        for array in (self.train_lengths, self.eval_users):
            array.setflags(write=False)

    def for_at_most(self, count: int | None, seed: int) -> LeaveOneOut:
        """The same split with at most ``count`` random ones of its `eval_users`; None: with all."""
        if count is None or count >= len(self.eval_users):
            return self
        drawn = np.random.default_rng(seed).choice(self.eval_users, count, replace=False)
        return self.for_users(np.sort(drawn))

    def for_users(self, users: np.ndarray) -> LeaveOneOut:
        """The same split with these of its `eval_users`, in their order."""
        fewer = copy.copy(self)
        fewer.eval_users = users.copy()
        fewer.eval_users.setflags(write=False)
        return fewer

    def targets(self, stage: Stage) -> np.ndarray:
        """(E,) int32, the item to be found for each of `eval_users`.

        Raises:
            ValueError: `stage` is neither "valid" nor "test".
        """
        ends = self.sequences.offsets[self.eval_users + 1]
        return self.sequences.items[ends - _from_end(stage)]

    def repeated(self) -> float:
        """The share of `eval_users` whose test target is in their history already."""
        items, lengths = self.sequences.items, self.sequences.lengths
        targets = items[self.sequences.offsets[1:] - 1]
        users = np.repeat(np.arange(len(lengths)), lengths)[items == np.repeat(targets, lengths)]
        times = np.bincount(users, minlength=len(lengths))
        return float((times[self.eval_users] > 1).mean())

    def history_lengths(self, stage: Stage) -> np.ndarray:
        """(E,) int64, the history of user u is `sequences[u][:length]`, all items before the target.

        At the test stage the validation item is part of it.

        Raises:
            ValueError: `stage` is neither "valid" nor "test".
        """
        return self.sequences.lengths[self.eval_users] - _from_end(stage)

    def train_prefixes(self) -> tuple[np.ndarray, np.ndarray]:
        """Every training position with an item of the same user before it.

        Position p stands for the sequence "the user's items before p" with the target `items[p]`.

        Returns:
            users (P,) int64, ascending, and positions (P,) int64 into `sequences.items`, ascending.
        """
        counts = np.maximum(self.train_lengths - 1, 0)
        first = np.cumsum(counts) - counts
        users = np.repeat(np.arange(self.sequences.num_users), counts)
        starts = self.sequences.offsets[:-1] + 1
        return users, np.repeat(starts - first, counts) + np.arange(counts.sum())

    def train_counts(self) -> np.ndarray:
        """(num_items + 1,) int64, how often each item occurs in the training part (padding: 0)."""
        items, lengths = self.sequences.items, self.sequences.lengths
        counts = np.bincount(items, minlength=self.sequences.num_items + 1)
        for from_end in _TARGET_POSITION.values():
            held_out = self.train_lengths <= lengths - from_end
            ends = self.sequences.offsets[1:][held_out]
            counts -= np.bincount(items[ends - from_end], minlength=len(counts))
        return counts


def _from_end(stage: str) -> int:
    if stage not in _TARGET_POSITION:
        raise ValueError(f"stage: expected 'valid' or 'test', got {stage!r}")
    return _TARGET_POSITION[stage]
