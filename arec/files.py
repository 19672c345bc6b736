"""Files that a person names, and files that are written whole or not at all."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from arec.errors import RunError


def user_path(path: str | Path) -> Path:
    """The path that a person means, in which a shell may have left ~ for the home folder."""
    return Path(os.path.expanduser(path))


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file under a temporary name and move it into place when it is complete.

    Raises:
        RunError: the folder or the disk refuses.
    """
    # Not of `tempfile`, which gives every file the mode 0600, whatever the umask.
    temporary = path.with_name(f"{_temporary(path)}{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                write(file)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from None


def remove_half_written(*paths: Path) -> None:
    """Remove what processes that were killed left of these files, which nobody else may be writing."""
    for path in paths:
        for temporary in path.parent.glob(f"{glob.escape(_temporary(path))}*"):
            if temporary.suffix[1:].isdigit():
                with suppress(OSError):
                    temporary.unlink()


def _temporary(path: Path) -> str:
    """How the name begins of what becomes this file, the number of the process being its end."""
    return f".{path.name}."


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    write_atomically(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")
