"""Same-target partners (DuoRec's supervised positives): who else was about to choose this item?"""

from __future__ import annotations

import numpy as np

from arec.data.split import LeaveOneOut


class TargetIndex:
    """The training prefixes by their target: one sorted number each, memory is linear in the data."""

    def __init__(self, split: LeaveOneOut) -> None:
        sequences = split.sequences
        _, positions = split.train_prefixes()
        # By item and position, so that one user's own sequences are one run within an item's.
        self._offsets = sequences.offsets
        self._count = len(sequences.items)
        self._keys = sequences.items[positions].astype(np.int64) * self._count + positions
        self._keys.sort()

    def sample(
        self,
        targets: np.ndarray,  # (B,) items
        users: np.ndarray,  # (B,) whose sequences do not count
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Uniform draw among the other users' sequences with the same target.

        Returns:
            positions ``(B,)`` int64 into ``sequences.items``, and the users ``(B,)`` they belong
            to; both -1 where no other user has such a sequence.
        """
        row = targets.astype(np.int64) * self._count
        begin, own_begin, own_end, end = (
            np.searchsorted(self._keys, row + position)
            for position in (0, self._offsets[users], self._offsets[users + 1], self._count)
        )
        others = (end - begin) - (own_end - own_begin)
        drawn = begin + rng.integers(0, np.maximum(others, 1))
        drawn += np.where(drawn >= own_begin, own_end - own_begin, 0)
        positions = np.full(len(targets), -1)
        found = others > 0
        positions[found] = self._keys[drawn[found]] % self._count
        return positions, np.searchsorted(self._offsets, positions, side="right") - 1
