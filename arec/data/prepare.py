"""From a log of interactions to `Sequences`: order by time, k-core, numbering."""

from __future__ import annotations

import numpy as np
import polars as pl

from arec.data.interactions import Sequences
from arec.errors import DataError


def prepare(name: str, log: pl.DataFrame, k_core: int) -> Sequences:
    """Sequences from a log as `arec.data.formats.read` returns it: columns user, item and, unless the
    rows of each user are in order, time (numbers or dates).

    Users and items are numbered in the order of their original ids as text, so that the same
    interactions get the same numbers from whatever file they came. Interactions of a user at the
    same time keep the order of the log. An item that a user has twice counts and stays twice.

    Raises:
        DataError: nothing is left after the k-core filter.
        ValueError: the log has other columns or an id or time is null; `k_core` < 1.
    """
    if not {"user", "item"} <= set(log.columns) <= {"user", "item", "time"}:
        raise ValueError(f"log: expected the columns user, item and, if any, time, got {log.columns}")
    for column in log:
        if column.null_count():
            raise ValueError(f"log: expected no null in {column.name}, got {column.null_count()}")
    users, user_ids = _numbered(log["user"])
    items, item_ids = _numbered(log["item"])
    times = log["time"].to_numpy() if "time" in log.columns else None
    order = np.argsort(users, kind="stable") if times is None else _time_order(users, times)
    users, items = users[order], items[order]
    kept = k_core_mask(users, items, k_core)
    if not kept.any():
        raise DataError(
            f"{name}: none of {len(users):,} interactions is left when users and items need "
            f"{k_core} each; set k_core lower"
        )
    tied = 0.0 if times is None else tied_share(users[kept], times[order][kept])
    users, user_numbers = _compact(users[kept])
    items, item_numbers = _compact(items[kept])
    return Sequences(
        name=name,
        items=(items + 1).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(np.bincount(users))]),
        item_ids=item_ids[item_numbers],
        user_ids=user_ids[user_numbers],
        tied=tied,
        in_log=(len(user_ids), len(item_ids), len(log)),
    )


def k_core_mask(
    users,  # (n,) int
    items,  # (n,) int
    k: int,
) -> np.ndarray:
    """(n,) bool, the largest part of the log in which every user and every item occurs >= k times.

    Found by dropping what is too rare until nothing is.

    Raises:
        ValueError: `k` < 1.
    """
    if k < 1:
        raise ValueError(f"k_core: expected at least 1 (which keeps everything), got {k}")
    kept = np.arange(len(users))
    while True:
        frequent = (np.bincount(users[kept]) >= k)[users[kept]]
        frequent &= (np.bincount(items[kept]) >= k)[items[kept]]
        if frequent.all():
            break
        kept = kept[frequent]
    mask = np.zeros(len(users), dtype=bool)
    mask[kept] = True
    return mask


def _numbered(ids: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int64 numbers from 0 in the order of the text, and the distinct ids in that order."""
    distinct = ids.unique()
    # Only the distinct ones become text, and are sorted.
    names = distinct.cast(pl.String)
    order = names.arg_sort()
    numbers = ids.replace_strict(
        distinct.gather(order), np.arange(len(order)), return_dtype=pl.Int64
    )
    return numbers.to_numpy(), names.gather(order).to_numpy()


def _time_order(
    users,  # (n,) int64 from 0
    times,  # (n,)
) -> np.ndarray:
    """(n,) int64, the rows by user and time; ties keep their order."""
    if len(times) and times.dtype == np.int64:
        start, end = int(times.min()), int(times.max()) + 1
        # Both in one key, where it fits an int64, are sorted once and not twice.
        if (int(users.max()) + 1) * (end - start) < 2**63:
            return np.argsort(users * (end - start) + (times - start), kind="stable")
    return np.lexsort((times, users))


def tied_share(
    users,  # (n,), each user's rows together
    times,  # (n,), in time order for each user
) -> float:
    """How many interactions have the time of the user's one before, of those that have one before."""
    follows = users[1:] == users[:-1]
    return float((follows & (times[1:] == times[:-1])).sum() / max(follows.sum(), 1))


def _compact(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same numbers without gaps, and the old number of every new one."""
    used = np.bincount(numbers) > 0
    return (np.cumsum(used) - 1)[numbers], np.flatnonzero(used)
