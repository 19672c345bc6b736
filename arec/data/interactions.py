"""`Sequences`: what every data set becomes, whatever it was read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from arec.data.builtin import PlantedTruth


@dataclass(frozen=True, eq=False)
class Sequences:
    """The items of every user in time order, one user after the other (CSR).

    The arrays become read-only, so that no augmentation can write through a view into the data.

    Raises:
        ValueError: the arrays do not fit together.
    """

    name: str
    items: np.ndarray  # (n,) int32, 1..num_items; 0 is padding and never occurs
    offsets: np.ndarray  # (U + 1,) int64, user u owns items[offsets[u]:offsets[u + 1]]
    item_ids: np.ndarray  # (num_items,) str, original id of item i is item_ids[i - 1]
    user_ids: np.ndarray  # (U,) str, original ids
    planted: PlantedTruth | None = None  # what only the built-in data can tell
    tied: float = 0.0  # share of interactions at the time of the user's one before, in the log's order
    in_log: tuple[int, int, int] | None = None  # users, items, interactions before the k-core

    def __post_init__(self) -> None:
        if self.items.dtype != np.int32 or self.items.ndim != 1:
            raise ValueError(f"items: expected (n,) int32, got {_describe(self.items)}")
        if self.offsets.dtype != np.int64 or self.offsets.shape != (len(self.user_ids) + 1,):
            raise ValueError(
                f"offsets: expected ({len(self.user_ids) + 1},) int64, got {_describe(self.offsets)}"
            )
        if (
            self.offsets[0] != 0
            or self.offsets[-1] != len(self.items)
            or (np.diff(self.offsets) < 0).any()
        ):
            raise ValueError(f"offsets: expected to rise from 0 to {len(self.items)}")
        if len(self.items) and not (1 <= self.items.min() and self.items.max() <= self.num_items):
            raise ValueError(f"items: expected values in 1..{self.num_items}")
        for array in (self.items, self.offsets, self.item_ids, self.user_ids):
            array.setflags(write=False)

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def num_interactions(self) -> int:
        return len(self.items)

    @property
    def lengths(self) -> np.ndarray:
        """(U,) int64, number of items of each user."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return self.num_users

    def __getitem__(self, user: int) -> np.ndarray:
        """(length,) int32, a read-only view of the user's items."""
        return self.items[self.offsets[:-1][user] : self.offsets[1:][user]]


def _describe(array: np.ndarray) -> str:
    return f"{array.shape} {array.dtype}"
