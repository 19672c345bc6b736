"""Small data and settings."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from arec.config import Config
from arec.data.builtin import generate
from arec.data.interactions import Sequences
from arec.data.split import LeaveOneOut


def sequences_of(*users: Sequence[int], num_items: int = 9, name: str = "tiny") -> Sequences:
    return Sequences(
        name=name,
        items=np.concatenate([np.asarray(items, dtype=np.int32) for items in users]),
        offsets=np.cumsum([0, *map(len, users)], dtype=np.int64),
        item_ids=np.arange(1, num_items + 1).astype(str),
        user_ids=np.arange(len(users)).astype(str),
    )


@functools.cache
def planted() -> LeaveOneOut:
    """Built-in data of 60 users, with intents."""
    return LeaveOneOut(generate(seed=1, num_users=60, num_items=100, num_intents=4, k_core=1))


def histories(users: int = 91, items: int = 20) -> LeaveOneOut:
    """Random ones of 6 to 14 items; so many users are one too many for two shares."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(6, 15, size=users)
    return LeaveOneOut(
        sequences_of(*(rng.integers(1, items + 1, size=n) for n in lengths), num_items=items)
    )


def config_of(**settings: object) -> Config:
    small = {"hidden_size": 16, "feed_forward": 16, "max_length": 8, "batch_size": 32}
    return Config(device="cpu", **small, **settings)
