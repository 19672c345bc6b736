"""Files fetched from their publishers, once, into the cache folder of the user."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests

from arec.errors import DataError

_BY_HAND = "get the file elsewhere and name its folder with --data-dir"


@dataclass(frozen=True)
class Remote:
    """A file of a publisher.

    Without a published checksum, the one of the first download is kept beside the file and every
    later use is held to it: that finds a damaged or changed file, not a wrong first download.
    """

    url: str
    checksum: str | None  # "md5:…", as the publisher gives it

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def fetch(remote: Remote) -> Path:
    """Path of the cached file, downloaded with a progress bar if it is not there yet.

    The file appears under its name only when it is complete and its checksum is right.

    Raises:
        DataError: no network, no such file there, wrong checksum, unwritable cache.
    """
    cache = Path(pooch.os_cache("arec"))
    record = cache / f"{remote.name}.sha256"
    # Its log says what the progress bar says, and advises programmers.
    pooch.get_logger().setLevel("WARNING")
    try:
        checksum = remote.checksum or (record.read_text() if record.exists() else None)
        path = pooch.retrieve(remote.url, checksum, remote.name, cache, progressbar=True)
        if checksum is None:
            partial = record.with_suffix(".partial")
            partial.write_text(f"sha256:{pooch.file_hash(path)}")
            os.replace(partial, record)
    except ValueError:  # pooch's word for a wrong checksum
        expected = f"{checksum} (from {record})" if remote.checksum is None else checksum
        raise DataError(
            f"{remote.url}: the file there does not have the checksum {expected}; try again, or "
            f"{_BY_HAND}"
        ) from None
    except requests.HTTPError as error:
        raise DataError(
            f"{remote.url}: the publisher answers with HTTP status {error.response.status_code}; "
            f"try again later, or {_BY_HAND}"
        ) from None
    except requests.RequestException as error:
        raise DataError(
            f"{remote.url}: cannot be fetched ({type(error).__name__}); check the network, or "
            f"{_BY_HAND}"
        ) from None
    except OSError as error:
        raise DataError(
            f"{cache}: cannot be written ({error.strerror or error}); make room there for "
            f"{remote.url}, or {_BY_HAND}"
        ) from None
    return Path(path)
