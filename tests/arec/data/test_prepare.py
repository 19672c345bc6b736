from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arec.data.prepare import k_core_mask, prepare
from arec.errors import DataError

pairs = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=60)


def plain_k_core(log, k):
    while True:
        users, items = Counter(u for u, _ in log), Counter(i for _, i in log)
        kept = [(u, i) for u, i in log if users[u] >= k and items[i] >= k]
        if len(kept) == len(log):
            return kept
        log = kept


@given(pairs, st.integers(1, 5))
def test_k_core_is_what_iterated_dropping_leaves(log, k):
    users, items = np.array(log).T
    mask = k_core_mask(users, items, k)
    assert [pair for pair, kept in zip(log, mask, strict=True) if kept] == plain_k_core(log, k)


# From -6 to 6 times this: 2**60 is too long for one key with the user, 2**59 for some numbers of users.
@pytest.mark.parametrize("unit", [1, 0.5, 2**59, 2**60])
@given(log=st.lists(st.tuples(*[st.integers(0, 12)] * 3), min_size=1, max_size=60))
def test_users_are_in_time_order_and_ties_in_file_order(log, unit):
    sequences = prepare(
        "log",
        pl.DataFrame(
            {"user": [f"u{u}" for u, _, _ in log], "item": [f"i{i}" for _, i, _ in log]}
        ).with_columns(time=pl.Series([(t - 6) * unit for _, _, t in log])),
        k_core=1,
    )
    for number, user in enumerate(sequences.user_ids):
        mine = sorted((t, n, f"i{i}") for n, (u, i, t) in enumerate(log) if f"u{u}" == user)
        got = [sequences.item_ids[item - 1] for item in sequences[number]]
        assert got == [item for _, _, item in mine]
    assert sequences.num_interactions == len(log)
    assert list(sequences.item_ids) == sorted({f"i{i}" for _, i, _ in log})


@given(st.lists(st.text(min_size=1), min_size=1))
def test_numbers_are_in_the_order_of_the_text(ids):
    sequences = prepare("log", pl.DataFrame({"user": ids, "item": ids}), k_core=1)
    distinct = sorted(set(ids))
    assert list(sequences.user_ids) == list(sequences.item_ids) == distinct
    assert sequences.items.tolist() == [distinct.index(i) + 1 for i in sorted(ids)]


def test_numbers_do_not_depend_on_the_order_of_users_in_the_file():
    log = pl.DataFrame({"user": ["b", "b", "a", "a"], "item": ["y", "x", "x", "z"]})
    one, other = prepare("one", log, 1), prepare("other", log[[2, 0, 3, 1]], 1)
    assert one.items.tolist() == other.items.tolist() == [1, 3, 2, 1]
    assert list(one.user_ids) == list(other.user_ids) == ["a", "b"]


def test_ids_that_the_filter_drops_leave_no_gap():
    log = pl.DataFrame({"user": list("aabbcd"), "item": list("xyxyzz")})
    sequences = prepare("log", log, 2)
    assert sequences.items.tolist() == [1, 2, 1, 2]
    assert list(sequences.item_ids) == ["x", "y"]
    assert list(sequences.user_ids) == ["a", "b"]


def test_nothing_left():
    with pytest.raises(DataError, match="none of 2 interactions is left.*set k_core lower"):
        prepare("log", pl.DataFrame({"user": ["a", "b"], "item": ["x", "y"]}), 2)


def test_k_core_below_one_is_refused():
    with pytest.raises(ValueError, match="k_core"):
        k_core_mask(np.array([0]), np.array([0]), 0)


def test_the_share_of_ties():
    log = pl.DataFrame({"user": list("aaabaab"), "item": list("vwxxyzv")})
    times = pl.Series([1, 2, 2, 2, 1, 3, 3])  # a: 1 1 2 2 3, b: 2 3
    assert prepare("log", log.with_columns(time=times), k_core=1).tied == 2 / 5
    assert prepare("log", log.with_columns(time=times), k_core=2).tied == 0, "of what is kept: a v x, b x v"
    assert prepare("log", log, k_core=1).tied == 0


def test_ids_may_be_numbers_and_are_taken_as_text():
    log = pl.DataFrame({"user": [10, 9, 9], "item": [2, 10, 2], "time": [1, 2, 1]})
    sequences = prepare("log", log, 1)
    assert sequences.user_ids.tolist() == ["10", "9"] and sequences.item_ids.tolist() == ["10", "2"]
    assert sequences.items.tolist() == [2, 2, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestamp": [1, 2]}, "expected the columns user, item and, if any, time, got"),
        ({"item": [None, "a"]}, "expected no null in item, got 1"),
        ({"time": [1, None]}, "expected no null in time, got 1"),
    ],
)
def test_a_log_of_another_form_is_refused(change, message):
    log = pl.DataFrame({"user": ["u", "u"], "item": ["a", "b"]} | change)
    with pytest.raises(ValueError, match=message):
        prepare("log", log, 1)
