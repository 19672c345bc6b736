"""Errors that a person can mend: programs print them in one line and leave with exit code 2."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something outside the program is wrong; the message says what, where and what to do."""


class DataError(UserError):
    """A data set cannot be found, fetched, read or used."""


class DataNotFoundError(DataError):
    """No file or folder where it should be."""


class ConfigError(UserError):
    """A setting is unknown, of the wrong type or out of range."""


class RunError(UserError):
    """A run cannot be made, written, read or continued."""


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message about an unknown word: the nearest known one, if there is one near."""
    words = {each.strip("-"): each for each in known}  # hyphens, which all options have, bring none nearer
    near = get_close_matches(word.strip("-"), words, n=1)
    return f"; did you mean {words[near[0]]}?" if near else otherwise
