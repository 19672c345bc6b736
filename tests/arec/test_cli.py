from __future__ import annotations

import subprocess
import sys

import pytest

from arec.cli import Parser, add_settings, given_settings
from arec.config import Config

OPTIONAL = [name for name, field in Config.model_fields.items() if field.default is None]


@pytest.mark.parametrize("name", OPTIONAL)
def test_none_is_a_word_on_the_command_line(name: str) -> None:
    parser = Parser("arec.train", "")
    add_settings(parser)
    arguments = parser.parse_args([f"--{name.replace('_', '-')}", "none", "--dataset", "none"])
    assert given_settings(arguments) == {name: None, "dataset": "none"}
    assert "(default: none)" in parser.format_help()
    assert "None" not in parser.format_help()


@pytest.mark.parametrize("end", ["", "raise SystemExit"])  # as --help does
def test_a_reader_that_leaves_early_is_no_error(end: str) -> None:
    program = f"""
from arec.cli import run
def main():
    for _ in range(100_000):
        print("a line that nobody reads")
    {end}
run("arec.recommend", main)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
