"""The programs as a person calls them."""

from __future__ import annotations

import sys

from arec.cli import run_program

SMALL = ["--hidden-size", "16", "--feed-forward", "16", "--max-length", "8", "--batch-size", "32"]


def call(program, monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    run_program(program.__name__, program.main)
