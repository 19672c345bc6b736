"""Ids and times as files have them, read from files."""

from __future__ import annotations

import re
from datetime import date

import polars as pl
import pytest

from arec.data.formats import Columns, read
from arec.errors import DataError


def times_of(tmp_path, *times: str) -> list[int]:
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp\n" + "".join(f"u,a,{time}\n" for time in times))
    return read(path)["time"].to_list()


@pytest.mark.parametrize(
    ("ids", "read_as"),
    [
        ([122.0, -3.0], [122, -3]),
        ([1.0, 1.5], ["1.0", "1.5"]),
        ([1e300, 2.0], pl.Series([1e300, 2.0]).cast(str).to_list()),
    ],
)
def test_whole_numbers_kept_as_floats_are_whole_ids(tmp_path, ids, read_as):
    path = tmp_path / "log.parquet"
    for kind in (pl.Float64, pl.Float32) if ids[0] < 1e38 else (pl.Float64,):
        pl.DataFrame({"user": pl.Series(ids, dtype=kind), "item": ["a", "b"]}).write_parquet(path)
        assert read(path, Columns(time=""))["user"].to_list() == read_as


@pytest.mark.parametrize(
    ("ids", "read_as"),
    [
        (["122", "-3", None], [122, -3]),
        (["1", "1.5", "0"], ["1.00", "1.50", "0.00"]),
        (["9" * 20, "1"], ["9" * 20 + ".00", "1.00"]),
    ],
)
def test_whole_numbers_kept_as_decimals_are_whole_ids(tmp_path, ids, read_as):
    path = tmp_path / "log.parquet"
    users = pl.Series(ids, dtype=pl.String).cast(pl.Decimal(38, 2))
    pl.DataFrame({"user": users, "item": ["a"] * len(ids)}).drop_nulls().write_parquet(path)
    assert read(path, Columns(time=""))["user"].to_list() == read_as


def test_nanoseconds_stay_apart(tmp_path):
    path = tmp_path / "u.data"
    path.write_text("u\ta\t1\t1700000000000000001\nu\tb\t1\t1700000000000000000\n")
    assert read(path)["time"].diff().to_list() == [None, -1]


def test_dates_of_iso_8601(tmp_path):
    day, hour, second = 86_400_000_000, 3_600_000_000, 1_000_000
    times = ["1970-01-02", "1970-01-02 01:00", "1970-01-02T01:00:01", "1970-01-02T01:00:01.5"]
    assert times_of(tmp_path, *times) == [
        day, day + hour, day + hour + second, day + hour + 3 * second // 2,
    ]  # fmt: skip
    noon = ["12:00:00Z", "12:00:00+00:00", "14:00+02:00", "08:30-0330"]
    assert times_of(tmp_path, *(f"1970-01-01T{time}" for time in noon)) == 4 * [12 * hour]


def test_dates_with_a_time_zone_do_not_mix_with_others(tmp_path):
    """Local times are no UTC: nobody knows their order among those of a known zone. The odd one is named."""
    zoned, local = "2020-01-31T12:00:00+02:00", "2020-01-31T11:30:00"
    for times, line in [
        ((zoned, local), 3), ((local, zoned), 2), ((zoned, zoned, local), 4),
        ((local, local, zoned), 4), ((zoned, local, local), 2),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=f"line {line}: .* time zone in all or in none"):
            times_of(tmp_path, *times)


@pytest.mark.parametrize(
    "date",
    ["02/03/2020", "31.12.2020", "2020/01/31", "2020-1-31", "2020-13-01", "31-12-2020", "noon"]
    + ["2020-01-01T12:00Z30", "2020-01-01T12:00Z:", "2020-01-01T12:00+02:"],
)
def test_other_dates_are_not_guessed(tmp_path, date):
    message = f"line 3: expected a number or an ISO 8601 date .* as timestamp, got '{re.escape(date)}'"
    with pytest.raises(DataError, match=message):
        times_of(tmp_path, "2020-01-01", date)
    with pytest.raises(DataError, match=message.replace("line 3", "line 2")):
        times_of(tmp_path, date, "2020-01-01")
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user": [1], "item": [1], "timestamp": [date]}).write_parquet(path)
    with pytest.raises(DataError, match=message.replace("line 3", "row 1")):
        read(path)


def test_blanks_around_ids_are_no_part_of_them_in_text_only(tmp_path):
    table = pl.DataFrame({"user": [" u", "u", "u "], "item": ["a", " a", "a"], "timestamp": [1, 2, 3]})
    table.write_parquet(tmp_path / "log.parquet")
    table.write_csv(tmp_path / "log.csv")
    assert read(tmp_path / "log.parquet").rows() == table.rows()
    assert read(tmp_path / "log.csv").rows() == [("u", "a", at) for at in (1, 2, 3)]
    table.with_columns(item=pl.lit(" ")).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match="log.parquet, row 1: item is empty"):
        read(tmp_path / "log.parquet")


def test_whole_times_too_long_for_a_float_are_not_merged(tmp_path) -> None:
    path, long = tmp_path / "log.csv", 1_600_000_000_000_000_000
    path.write_text(f"user,item,timestamp\nu,b,{long + 2}.0\nu,a,{long + 1}\n")
    assert read(path, Columns())["time"].to_list() == [long + 2, long + 1]
    path.write_text(f"user,item,timestamp\nu,b,{long + 2}\nu,a,1.5\n")
    with pytest.raises(DataError, match=f"line 2: expected a number or an ISO 8601 date .*, got '{long + 2}'"):
        read(path, Columns())


def test_categories_of_parquet_are_text(tmp_path) -> None:
    path = tmp_path / "log.parquet"
    days = pl.Series(["2020-02-01", "2020-01-31"], dtype=pl.Categorical)
    pl.DataFrame({"user": ["u", "u"], "item": ["a", "b"], "timestamp": days}).write_parquet(path)
    later, earlier = read(path, Columns())["time"]
    assert later - earlier == 24 * 3600 * 10**6


@pytest.mark.parametrize(
    "times",
    [
        pl.Series([3, 1, 2]).cast(pl.Datetime("ns")),  # as pandas writes them, apart by less than a us
        pl.Series([2**60 + 3, 2**60 + 1, 2**60 + 2], dtype=pl.Decimal(38, 0)),
        pl.Series(["1.75", "-0.5", "0.25"]).cast(pl.Decimal(10, 2)),
        pl.Series([3, 1, 2], dtype=pl.UInt8),
    ],
    ids=lambda times: str(times.dtype),
)
def test_times_of_parquet_are_numbers_in_order(tmp_path, times) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user": [1] * 3, "item": [1, 2, 3], "timestamp": times}).write_parquet(path)
    assert read(path)["time"].to_numpy().argsort().tolist() == [1, 2, 0]
    assert read(path)["time"].to_numpy().dtype != object


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0], {"id": 1.0}])
@pytest.mark.parametrize("column", ["user", "item", "timestamp"])
def test_parquet_values_that_are_no_ids_and_no_times(tmp_path, column, value):
    path = tmp_path / "log.parquet"
    row = {"user": [1.5], "item": [1.5], "timestamp": [1.5]} | {column: [value]}
    pl.DataFrame(row).write_parquet(path)
    with pytest.raises(DataError, match="row 1: expected"):
        read(path)


def test_days_of_parquet(tmp_path) -> None:
    path = tmp_path / "log.parquet"
    days = [date(2020, 1, day) for day in (3, 1, 2)]
    pl.DataFrame({"user": [1, 1, 1], "item": [1, 2, 3], "timestamp": days}).write_parquet(path)
    assert read(path)["time"].arg_sort().to_list() == [1, 2, 0]
