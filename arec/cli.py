"""What the programs share: options from :class:`Config`, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import sys
import textwrap
import typing
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from arec import __version__
from arec.config import Config
from arec.errors import UserError, did_you_mean

_NONE = "none"
# PyTorch has an exception of its own for a GPU without memory only.
_OUT_OF_MEMORY = re.compile(
    "out of memory|can't allocate memory|Storage size calculation overflowed"
)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Breaks no names at their hyphens, and shows no default of None."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line and leaves with exit code 2."""

    def __init__(self, program: str, description: str) -> None:
        super().__init__(
            prog=f"python -m {program}",
            description=description,
            allow_abbrev=False,
            formatter_class=_Help,
        )
        self.add_argument("--version", action="version", version=f"arec {__version__}")

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"^unrecognized arguments: (--[\w-]+)", message)
        options = (option for action in self._actions for option in action.option_strings)
        hint = did_you_mean(unknown[1] if unknown else "", options, " (see --help)")
        self.exit(2, _error_line(self.prog, message + hint))


def _error_line(program: str, message: str) -> str:
    """One, even where names have several."""
    return f"{program}: error: {' '.join(message.splitlines())}\n"


def add_settings(parser: argparse.ArgumentParser, *, listed: bool = True) -> None:
    """An option for every field of :class:`Config`, absent from the result unless given.

    Args:
        listed: whether ``--help`` shows them.
    """
    group = parser.add_argument_group("settings (in a TOML file their names have _ for -)")
    for name, field in Config.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        default = _NONE if field.default is None else field.default
        text = f"{field.description} (default: {default})".replace("%", "%%")
        shown: dict[str, Any] = {"help": text if listed else argparse.SUPPRESS}
        if field.annotation is bool:
            group.add_argument(
                option, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, **shown
            )
        else:
            is_choice = typing.get_origin(field.annotation) is typing.Literal
            choices = typing.get_args(field.annotation) if is_choice else None
            kinds = (field.annotation, *typing.get_args(field.annotation))
            if choices:
                metavar = "{" + ",".join(choices) + "}"
            else:
                metavar = "N" if int in kinds else "X" if float in kinds else name.rsplit("_", 1)[-1].upper()
            group.add_argument(option, metavar=metavar, default=argparse.SUPPRESS, **shown)


def add_device(parser: Parser) -> None:
    """The option to use a run elsewhere than where it was trained."""
    parser.add_argument("--device", help="auto, cpu or cuda; default: as the settings of the run say")


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that stood on the command line, of which "none" is None where that is the default."""
    return {
        name: None if value == _NONE and Config.model_fields[name].default is None else value
        for name, value in vars(arguments).items()
        if name in Config.model_fields
    }


def run_program(program: str, main: Callable[[], None]) -> None:
    """Call ``main``; what a person can mend becomes one line on standard error and exit code 2."""

    def fail(message: str) -> NoReturn:
        sys.stderr.write(_error_line(f"python -m {program}", message))
        sys.exit(2)

    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the caller, who wants nothing of it
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115 (as long as the process lives)

    # What a scheduler or container sends before it kills: Ctrl-C's way out, which says how to go on.
    interrupted_by = signal.SIGINT

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal interrupted_by
        interrupted_by = signal.SIGTERM
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    # Tables have characters such as ±, which can be told another way; ids of recommendations cannot.
    if program != "arec.recommend" and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            main()
        finally:
            sys.stdout.flush()  # a closed pipe shows here, not when Python flushes at its end
    except UserError as error:
        fail(str(error))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        fail(
            "out of memory; expected settings that need less of it (batch_size, hidden_size, "
            "max_length, …) or a larger machine"
        )
    except KeyboardInterrupt:
        print(f"python -m {program}: interrupted", file=sys.stderr)
        sys.exit(128 + interrupted_by)
    except UnicodeEncodeError as error:
        fail(f"{error.object[error.start : error.end]!r} cannot be written as {error.encoding}")
    except OSError as error:
        if error.filename is not None:
            fail(f"{error.filename}: {error.strerror}")
        # Of standard output: Python's own flush of what is left in the buffer shall not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader has had enough, as `head` does
            sys.exit(141)  # as a program that SIGPIPE ends
        fail(f"the output cannot be written: {error.strerror}")
