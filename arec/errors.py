"""Errors that a person can mend: programs print them in one line and leave with exit code 2."""

from __future__ import annotations


class UserError(Exception):
    """Something outside the program is wrong; the message says what, where and what to do."""


class DataError(UserError):
    """A data set cannot be found, fetched, read or used."""


class DataNotFoundError(DataError):
    """No file or folder where it should be."""
