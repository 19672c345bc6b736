"""What stands in a column of a log: ids, and times."""

from __future__ import annotations

import math

import polars as pl

TIME = (  # as `as_number` reads them
    "a number or an ISO 8601 date (2020-01-31 or 2020-01-31T12:30:00; numbers in all rows or "
    "dates, with a time zone in all or in none)"
)
# Date, hours and minutes, seconds, Z, or hours and minutes of the offset; only the date has to be
# there.
_ISO_8601 = (
    r"^(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d(?:\.\d+)?)?(?:(Z)|([+-]\d\d)(?::?(\d\d))?)?)?$"
)


def as_id(column: pl.Series, blanks: bool) -> pl.Series:
    """Text or whole numbers, null where there is nothing that names a user or an item.

    Args:
        blanks: whether those around text are part of it.
    """
    if column.dtype.is_nested():
        return pl.Series([None] * len(column), dtype=pl.String)
    column = _finite(column)
    # As programs keep whole numbers where some are missing, and databases all of them.
    if column.dtype.is_float() or column.dtype.is_decimal():
        whole = column.cast(pl.Int64, strict=False)
        column = whole if whole.eq_missing(column).all() else column
    if column.dtype.is_integer():
        return column
    text = column.cast(pl.String)
    stripped = text.str.strip_chars().replace("", None)
    return text.set(stripped.is_null(), None) if blanks else stripped


def as_number(time: pl.Series) -> pl.Series:
    """Numbers, or dates as numbers of one unit, null where there is neither."""
    if time.dtype in (pl.Categorical, pl.Enum):
        time = time.cast(pl.String)
    if time.dtype == pl.String:
        text = time.str.strip_chars()
        # Whole numbers as such: a float would merge neighbouring nanoseconds, and those that are too
        # long for an int64.
        whole = text.str.replace(r"^([+-]?\d+)\.0*$", "${1}").cast(pl.Int64, strict=False)
        if whole.null_count() == text.null_count():
            return whole
        too_long = text.str.contains(r"^[+-]?\d+$") & (whole.is_null() | (whole.abs() > 2**53))
        numbers = _finite(text.cast(pl.Float64, strict=False)).set(too_long, None)
        if numbers.null_count() == text.null_count():
            return numbers
        dates = _dates(text)
        return dates if dates.null_count() < numbers.null_count() else numbers
    if time.dtype in (pl.Date, pl.Datetime):
        time = time.to_physical()
    if time.dtype.is_decimal():  # as databases keep whole numbers
        whole = time.cast(pl.Int64, strict=False)
        return whole if (whole == time).all() else time.cast(pl.Float64)
    if time.dtype.is_integer():
        return time.cast(pl.Int64, strict=False)
    return _finite(time) if time.dtype.is_numeric() else time.clear(len(time))


def _dates(text: pl.Series) -> pl.Series:
    """Microseconds of ISO 8601 dates, UTC unless they say otherwise; null for any other text, and
    where only some have a time zone for those with one or without, whichever are fewer.

    Other orders of day and month are not guessed: 02/03 is either.
    """
    date, minutes, seconds, utc, hour_offset, minute_offset = (
        text.str.extract_groups(_ISO_8601).struct.unnest().get_columns()
    )
    zoned = utc.is_not_null() | hour_offset.is_not_null()
    local = date.is_not_null() & ~zoned
    if zoned.any():
        date = date.set(zoned if zoned.sum() < local.sum() else local, None)
    complete = (
        date + "T" + minutes.fill_null("00:00") + seconds.fill_null(":00")
        + hour_offset.fill_null("+00") + minute_offset.fill_null("00")
    )  # fmt: skip
    moments = complete.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%z", time_unit="us", strict=False)
    return moments.to_physical()


def _finite(numbers: pl.Series) -> pl.Series:
    """Null where floats are NaN or infinite; anything else as it is."""
    if not numbers.dtype.is_float():
        return numbers
    return numbers.replace([math.nan, math.inf, -math.inf], None)
