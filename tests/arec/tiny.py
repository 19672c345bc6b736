"""Data from the items of each user."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arec.data.interactions import Sequences


def sequences_of(*users: Sequence[int], num_items: int = 9, name: str = "tiny") -> Sequences:
    return Sequences(
        name=name,
        items=np.concatenate([np.asarray(items, dtype=np.int32) for items in users]),
        offsets=np.cumsum([0, *map(len, users)], dtype=np.int64),
        item_ids=np.arange(1, num_items + 1).astype(str),
        user_ids=np.arange(len(users)).astype(str),
    )
