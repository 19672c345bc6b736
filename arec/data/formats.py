"""Readers of interaction files; the name of a file decides its format.

| name | format |
|---|---|
| `*.txt` | sequences: `user item item …` in time order, separated by blanks |
| `*.csv`, `*.tsv`, `*.parquet` | named columns; MovieLens' `userId,movieId,rating,timestamp` is known |
| `*.inter` | RecBole: tab-separated, header `user_id:token item_id:token … timestamp:float` |
| `*.dat` | MovieLens 1M and 10M: `user::item::rating::timestamp` |
| `*.data` | MovieLens 100K: `user item rating timestamp`, tab-separated |
| `ratings_[A-Z]*.csv` | Amazon 2014: `user,item,rating,timestamp` without a header |
| `*.zip`, `*.whl` | an archive of a publisher that holds one of the above, see `_ARCHIVE_MEMBERS` |

Each but an archive may be compressed as `*.gz`. Text is UTF-8, blank lines are skipped, blanks around a field are no
part of it (in Parquet they are). Ids are text, a time is a number or an ISO 8601 date.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import lzma
import re
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

import polars as pl

from arec.data.values import TIME, as_id, as_number
from arec.errors import DataError, DataNotFoundError


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a CSV, TSV or Parquet file.

    An empty `time` says that the rows of every user are in time order already.
    """

    user: str = "user"
    item: str = "item"
    time: str = "timestamp"


@dataclass(frozen=True)
class _Delimited:
    """A text format with one interaction a line."""

    separator: str
    columns: Columns
    fields: tuple[str, ...] | None = None  # of a line; None: the first line is a header
    quoted: bool = False


_MOVIELENS_COLUMNS = Columns("userId", "movieId", "timestamp")

_INTER_COLUMNS = Columns("user_id:token", "item_id:token", "timestamp:float")

_DELIMITED = {
    "*.inter": _Delimited("\t", _INTER_COLUMNS),
    # "::" is read as two ":" with an empty field between.
    "*.dat": _Delimited(":", Columns(), ("user", "", "item", "", "rating", "", "timestamp")),
    "*.data": _Delimited("\t", Columns(), ("user", "item", "rating", "timestamp")),
    "ratings_[A-Z]*.csv": _Delimited(",", Columns(), ("user", "item", "rating", "timestamp")),
}

_HEADERS = ({"user", "item"}, {"user_id", "item_id"}, {"userid", "movieid"})
_NOT_UTF_8 = "not UTF-8 text; save it as UTF-8"

_ARCHIVE_MEMBERS = (
    "ml-1m/ratings.dat",
    "ml-100k/u.data",
    "recbole/dataset_example/ml-100k/ml-100k.inter",
)


def read(path: Path, columns: Columns = Columns()) -> pl.DataFrame:
    """Read a file of interactions into columns user and item (text, or whole numbers where the file
    has such) and, where the file has it, time (a number); the rows are in file order.

    Raises:
        DataError: missing or unreadable file, unknown format, wrong columns, a line that cannot be
            parsed (with its number), or no interaction at all.
    """
    data, name = _contents(path)
    where = str(path)
    dialect = _dialect(name)
    if dialect is not None:
        frame = _read_delimited(where, data, dialect)
    elif name.endswith((".csv", ".tsv")):
        separator = "," if name.endswith(".csv") else "\t"
        frame = _read_delimited(where, data, _Delimited(separator, columns, quoted=True))
    elif name.endswith(".parquet"):
        frame = _read_parquet(where, data, columns)
    elif name.endswith(".txt"):
        frame = _read_sequences(where, data)
    else:
        raise DataError(
            f"{where}: unknown format; known are .txt (user item item …), .csv, .tsv, .parquet, "
            ".inter, ratings.dat and u.data, each also with .gz"
        )
    if frame.is_empty():
        raise DataError(f"{where}: no interactions in it")
    return frame


def has_fixed_columns(path: Path) -> bool:
    """Whether it is a file of the formats in which `Columns` has no say."""
    name = _with_small_endings(path.name).removesuffix(".gz")
    return name.endswith((".txt", ".zip", ".whl")) or _dialect(name) is not None


def _with_small_endings(name: str) -> str:
    """They are of any case on some systems, LOG.CSV."""
    stem, *endings = name.split(".")
    return ".".join([stem, *map(str.lower, endings)])


def _dialect(name: str) -> _Delimited | None:
    return next((d for pattern, d in _DELIMITED.items() if fnmatch(name, pattern)), None)


def _contents(path: Path) -> tuple[bytes, str]:
    """The uncompressed bytes of a file, and the name that tells their format."""
    name = _with_small_endings(path.name)
    try:
        if name.endswith((".zip", ".whl")):
            with zipfile.ZipFile(path) as archive:
                for member in _ARCHIVE_MEMBERS:
                    if member in archive.namelist():
                        return archive.read(member), Path(member).name
            known = ", ".join(_ARCHIVE_MEMBERS)
            raise DataError(f"{path}: holds none of {known}; unpack a file of your own, or use .gz")
        if name.endswith(".gz"):
            with gzip.open(path) as file:
                return file.read(), name.removesuffix(".gz")
        return path.read_bytes(), name
    except FileNotFoundError:
        raise DataNotFoundError(f"{path}: no such file") from None
    # BadGzipFile is an OSError without strerror, so it has to come first.
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); get the file again") from None
    except RuntimeError as error:  # a password, a compression that Python does not know
        raise DataError(f"{path}: cannot be unpacked ({error}); unpack it yourself") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _read_sequences(where: str, data: bytes) -> pl.DataFrame:
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise DataError(f"{where}: {_NOT_UTF_8}") from None
    lines = text.split("\n")
    if _looks_like_columns(lines):
        raise DataError(
            f"{where}: expected 'user item item …' on each line, as in every .txt, found columns; "
            "name it .csv (columns separated by commas) or .tsv (tabs)"
        )
    words = pl.col("words")
    frame = (
        pl.DataFrame({"words": lines})
        .select(words.str.extract_all(r"[^ \t]+"))
        .with_row_index("line", offset=1)
        .filter(words.list.len() > 0)
    )
    bad = frame.filter(words.list.len() == 1)
    if not bad.is_empty():
        line, (user,) = bad.row(0)
        raise DataError(f"{where}, line {line}: expected 'user item item …', got {user!r} alone")
    return frame.select(user=words.list.first(), item=words.list.slice(1)).explode("item")


def _looks_like_columns(lines: list[str]) -> bool:
    """A header with the usual names, or as many commas or semicolons, two or more, on all lines."""
    first = next(filter(str.strip, lines), "")
    header = {name.strip("\"'").lower() for name in re.split(r"[,;|\s]+", first)}
    if any(names <= header for names in _HEADERS):
        return True
    for mark in ",;":
        count = first.count(mark)
        if count > 1 and all(line.count(mark) == count for line in lines if line.strip()):
            return True
    return False


def _read_delimited(where: str, data: bytes, dialect: _Delimited) -> pl.DataFrame:
    if b"\n" not in data and b"\r" in data:
        raise DataError(rf"{where}: expected lines that end in \n or \r\n, found \r alone")
    header = dialect.fields is None
    if header:
        fields = next(_records(data, dialect), (1, []))[1]
        if not fields:
            found = "a blank line" if data.strip() else "an empty file"
            raise DataError(f"{where}: expected a header line, found {found}")
        if "\ufffd" in "".join(fields):
            raise DataError(f"{where}: {_NOT_UTF_8}")
        other = next((mark for mark in ",;\t|" if len(fields) == 1 and mark in fields[0]), None)
        if other:
            raise DataError(
                f"{where}: expected columns separated by {dialect.separator!r}, found {other!r} in the "
                "header"
            )
        if not _named(dialect.columns) <= set(fields):
            fields = [field.strip() for field in fields]
        columns = _chosen_columns(where, dialect.columns, fields)
    else:
        fields, columns = list(dialect.fields), dialect.columns

    def complain(line: int, values: list[str]) -> DataError:
        expected = dialect.separator.join(fields)
        got = dialect.separator.join(values)
        hint = "" if header else " (by its name a file without a header)"
        hint += "; perhaps a quote is not closed" if "\n" in got else ""
        return DataError(f"{where}, line {line}: expected {expected!r}, got {got[:80]!r}{hint}")

    if data[:1] in (b"x", b"(", b"\x1f"):  # Polars would take some such text for compressed data
        data = codecs.BOM_UTF8 + data
    try:
        frame = pl.read_csv(
            data,
            has_header=header,
            separator=dialect.separator,
            quote_char='"' if dialect.quoted else None,
            infer_schema=False,
        )
        if frame.width != len(fields):
            raise pl.exceptions.ShapeError(f"{frame.width} fields instead of {len(fields)}")
    except pl.exceptions.NoDataError:
        raise DataError(f"{where}: empty file") from None
    except pl.exceptions.PolarsError as error:
        # Most often a line has too many fields, and the error does not say which.
        for line, values in _records(data, dialect):
            if values and len(values) != len(fields):
                raise complain(line, values) from None
        if "utf-8" in str(error).lower():
            raise DataError(f"{where}: {_NOT_UTF_8}") from None
        odd = (n for n, line in enumerate(data.split(b"\n"), 1) if line.count(b'"') % 2)
        if dialect.quoted and (line := next(odd, 0)):
            raise DataError(
                f'{where}, line {line}: a quote that is not closed; a field with " in it is to be quoted, '
                'and the " in it doubled'
            ) from None
        raise DataError(f"{where}: cannot be parsed ({_summary(error)})") from None

    def column(name: str) -> pl.Series:
        return frame.to_series(fields.index(name))

    result = _interactions(columns, column, blanks=False)
    # A blank line became a row of nulls.
    blank = frame.select(pl.all_horizontal(pl.all().is_null())).to_series()
    bad = (_incomplete(result) & ~blank).arg_true()
    if len(bad):
        line, values = next(islice(_records(data, dialect), bad[0] + header, None))
        if len(values) == len(fields):
            _check_values(f"{where}, line {line}", columns, result, bad[0], column)
        raise complain(line, values)
    return result.filter(~blank)


def _records(data: bytes, dialect: _Delimited) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line and fields of one record after the other: slow, for headers and
    for finding what is wrong. Blank lines are records without fields."""
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", errors="replace", newline="")
    quoting = csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE
    # Of a quote that is never closed the rest of the file is one field.
    csv.field_size_limit(max(csv.field_size_limit(), len(data)))
    reader = csv.reader(text, delimiter=dialect.separator, quoting=quoting)
    line = 1
    for values in reader:
        yield line, values
        line = reader.line_num + 1


def _read_parquet(where: str, data: bytes, columns: Columns) -> pl.DataFrame:
    try:
        columns = _chosen_columns(where, columns, list(pl.read_parquet_schema(io.BytesIO(data))))
        frame = pl.read_parquet(io.BytesIO(data), columns=sorted(_named(columns)))
        result = _interactions(columns, frame.get_column, blanks=True)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DataError(f"{where}: not a readable Parquet file ({_summary(error)})") from None
    bad = _incomplete(result).arg_true()
    if len(bad):
        place, row = f"{where}, row {bad[0] + 1}", frame.row(bad[0], named=True)
        _check_values(place, columns, result, bad[0], frame.get_column)
        raise DataError(f"{place}: expected a user, an item, a time, got {row}")
    return result


def _chosen_columns(where: str, columns: Columns, header: list[str]) -> Columns:
    if columns == Columns() and _named(_MOVIELENS_COLUMNS) <= set(header):
        columns = _MOVIELENS_COLUMNS
    names = (columns.user, columns.item, columns.time)
    if "" in names[:2] or len(set(names)) < 3:
        raise DataError(
            f"{where}: expected different columns for user, item and time (this one may be ''), "
            f"got {names}"
        )
    if not _named(columns) <= set(header):
        found = textwrap.shorten(", ".join(map(repr, header)), 160, placeholder=" …")
        if columns == _INTER_COLUMNS:
            hint = "With other columns rename it to .tsv, of which "
        else:
            hint = "Text files need a header line. In CSV (commas), TSV and Parquet "
        raise DataError(
            f"{where}: expected the columns {', '.join(sorted(_named(columns)))}; found {found}. {hint}"
            "--user-column, --item-column and --time-column say "
            "which ones to read; --time-column '' takes the rows of a user in file order"
        )
    for name in sorted(_named(columns)):
        if header.count(name) > 1:
            raise DataError(f"{where}: expected one column {name}, found {header.count(name)}")
    return columns


def _named(columns: Columns) -> set[str]:
    return {columns.user, columns.item, columns.time} - {""}


def _interactions(
    columns: Columns, column: Callable[[str], pl.Series], *, blanks: bool
) -> pl.DataFrame:
    """Columns user, item and, if named, time; null where there is no id or no valid time.

    Args:
        blanks: whether those around an id are part of it.
    """
    result = {
        "user": as_id(column(columns.user), blanks),
        "item": as_id(column(columns.item), blanks),
    }
    if columns.time:
        result["time"] = as_number(column(columns.time))
    return pl.DataFrame(result)


def _check_values(
    place: str, columns: Columns, result: pl.DataFrame, row: int, column: Callable[[str], pl.Series]
) -> None:
    """Raises `DataError` if an incomplete row has one value that is missing or wrong."""
    missing = [name for name, value in result.row(row, named=True).items() if value is None]
    if len(missing) > 1:
        return
    name = getattr(columns, missing[0])
    value = column(name).gather([row]).to_list()[0]
    if value is None or isinstance(value, str) and not value.strip():
        raise DataError(f"{place}: {name} is empty")
    if missing[0] == "time":
        raise DataError(f"{place}: expected {TIME} as {name}, got {value!r}")


def _incomplete(frame: pl.DataFrame) -> pl.Series:
    """(rows,) bool, true where a value is missing."""
    return frame.select(pl.any_horizontal(pl.all().is_null())).to_series()


def _summary(error: Exception) -> str:
    return str(error).partition("\n")[0]
