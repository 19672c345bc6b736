"""Same-target partners (DuoRec's supervised positives): who else was about to choose this item?"""

from __future__ import annotations

import numpy as np

from arec.data.split import LeaveOneOut


class TargetIndex:
    """The training prefixes by their target, as CSR: memory is linear in the data."""

    def __init__(self, split: LeaveOneOut) -> None:
        sequences = split.sequences
        users, positions = split.train_prefixes()
        # Sorted by (item, user), so that one user's own sequences are one run within an item's.
        self._num_users = max(sequences.num_users, 1)
        keys = sequences.items[positions].astype(np.int64) * self._num_users + users
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        # Index -1, "nobody", finds -1 at the end.
        self.positions = np.append(positions[order], -1)
        self.users = np.append(users[order], -1)

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
        row = targets.astype(np.int64) * self._num_users
        begin = np.searchsorted(self._keys, row)
        end = np.searchsorted(self._keys, row + self._num_users)
        own_begin = np.searchsorted(self._keys, row + users)
        own_end = np.searchsorted(self._keys, row + users, side="right")
        others = (end - begin) - (own_end - own_begin)
        drawn = begin + rng.integers(0, np.maximum(others, 1))
        drawn += np.where(drawn >= own_begin, own_end - own_begin, 0)
        drawn = np.where(others > 0, drawn, -1)
        return self.positions[drawn], self.users[drawn]
