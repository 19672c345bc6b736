"""Runs the tests of the Triton kernels in a process that interprets them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = ("triton_kernels", "backends", "loss", "registration", "similarity")


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this process interprets")
def test_kernels_under_the_interpreter() -> None:
    # Triton decides when it is imported whether kernels are interpreted: hence the process.
    tests = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton",
         *(str(tests / f"test_{name}.py") for name in FILES)],
        check=False, cwd=tests.parents[1], env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True, text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout, run.stdout
