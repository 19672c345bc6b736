"""Data sets by name, and your own file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from arec.data import builtin
from arec.data.download import Remote, fetch
from arec.data.formats import Columns, has_fixed_columns, read
from arec.data.interactions import Sequences
from arec.data.prepare import prepare
from arec.errors import DataError, DataNotFoundError, did_you_mean
from arec.files import user_path


@dataclass(frozen=True)
class _Source:
    remote: Remote
    files: tuple[str, ...]  # looked for in a folder of files at hand, the first one wins


# The checksums of MovieLens are those that GroupLens publishes beside the archives. For Amazon's
# file no checksum is published: see `Remote`.
_SOURCES = {
    "ml-1m": _Source(
        Remote(
            "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
            "md5:c4d9eecfca2ab87c1945afe126590906",
        ),
        ("ml-1m.zip", "ml-1m/ratings.dat", "ratings.dat", "ml-1m.inter", "ml-1m.txt"),
    ),
    "ml-100k": _Source(
        Remote(
            "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
            "md5:0e33842e24a9c977be4e0107933c0723",
        ),
        ("ml-100k.zip", "ml-100k/u.data", "u.data", "ml-100k.inter", "ml-100k.txt")
        + ("recbole-*.whl",),
    ),
    "beauty": _Source(
        Remote(
            "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/ratings_Beauty.csv",
            None,
        ),
        ("ratings_Beauty.csv", "beauty.txt", "Beauty.txt"),
    ),
}


# What a data set is called; anything else is the path of a file.
NAMES = ("builtin", *_SOURCES)


def load(
    dataset: str,
    *,
    data_dir: Path | None = None,
    user_column: str = "user",
    item_column: str = "item",
    time_column: str = "timestamp",
    k_core: int = 5,
    seed: int = 0,
) -> Sequences:
    """Load a data set.

    Args:
        dataset: "builtin", "ml-1m", "ml-100k", "beauty", or the path of your own file in one of
            the formats of `arec.data.formats`.
        data_dir: folder of files at hand, by default the environment variable AREC_DATA_DIR. With
            it a named data set has to be there under a usual name (`ml-1m.zip`, `ratings.dat`,
            `u.data`, …; no archive: also with `.gz`) and nothing is downloaded. Without it, the data are
            fetched from their publisher and cached. The wheel of recbole counts as a file of ml-100k
            too, for machines that only reach a package index: `pip download --no-deps recbole`.
        user_column, item_column, time_column: of your own CSV, TSV or Parquet file, an error with any
            other; an empty time column says that the rows of every user are in time order already.
            Ties keep the order of the file.
        k_core: users and items with fewer interactions are dropped until there are none; 1 keeps
            everything.
        seed: of the built-in data.

    Raises:
        DataError: the data cannot be found, fetched, read or used; what, where and what to do.
    """
    columns = Columns(user_column, item_column, time_column)
    if columns != Columns() and (dataset in NAMES or has_fixed_columns(Path(dataset))):
        raise DataError(
            f"{dataset}: expected no --user-column, --item-column or --time-column, which are for "
            "a CSV, TSV or Parquet file of your own (ratings_X.csv is a name of Amazon's, whose files "
            "have no header)"
        )
    if dataset == "builtin":
        return builtin.generate(seed, k_core)
    source = _SOURCES.get(dataset)
    path = Path(dataset) if source is None else _locate(dataset, source, data_dir)
    if source is None and not path.exists():
        hint = ""
        if not path.suffix:  # no file either, so it may be a misspelt name
            hint = f", and no data set of that name; there are {', '.join(NAMES)}"
            hint += did_you_mean(path.name, NAMES)
        raise DataNotFoundError(f"{dataset}: no such file{hint}")
    log = read(path, columns)
    return prepare(dataset if source else path.name, log, k_core)


def absolute(dataset: str, data_dir: Path | None) -> tuple[str, Path | None]:
    """The same data set and folder of files at hand, seen from any folder and any shell."""
    if dataset in _SOURCES:
        data_dir = _folder_at_hand(data_dir)
    elif dataset != "builtin":
        dataset = str(Path(dataset).resolve())
    return dataset, data_dir and data_dir.resolve()


def _folder_at_hand(data_dir: Path | None) -> Path | None:
    from_environment = os.environ.get("AREC_DATA_DIR")
    return data_dir or (user_path(from_environment) if from_environment else None)


def _locate(dataset: str, source: _Source, data_dir: Path | None) -> Path:
    folder = _folder_at_hand(data_dir)
    if folder:
        return _at_hand(dataset, source, folder)
    return fetch(source.remote)


def _at_hand(dataset: str, source: _Source, folder: Path) -> Path:
    if not folder.is_dir():
        raise DataNotFoundError(f"{folder}: no such folder")
    for name in source.files:
        for pattern in (name, f"{name}.gz"):
            found = sorted(folder.glob(pattern))
            if found:
                return found[-1]
    raise DataNotFoundError(
        f"{folder}: holds no file of {dataset}; expected one of {', '.join(source.files)}, or one "
        "of them, if it is no archive, with .gz"
    )
