"""What one call adds to a process's memory at its peak, each call in a process of its own.

A process that has run before shows too little: allocators keep what was freed, and our kernels a
workspace. So a server that has imported everything, and run nothing, forks for each call.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from rivals import RIVALS
from timing import call, problem

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Server:
    """Says, one question at a time, how much memory a rival takes."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"},  # no compiling processes
        )  # fmt: skip

    def peak_bytes(self, rival: str, n: int, d: int, backward: bool) -> int | None:
        """None where the system does not tell, or ended the call for want of memory."""
        print(json.dumps([rival, n, d, backward]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def measure(rival: str, n: int, d: int, backward: bool) -> int | None:
    """The first call's peak at this size, in bytes, inputs aside; to be called once a process."""
    if not CLEAR.exists():
        return None
    loss = RIVALS[rival].loss
    # A small call brings threads and code; torch.compile compiles for one shape only.
    call(loss, *problem(n if rival.startswith("torch.compile") else 16, d), backward)()
    function = call(loss, *problem(n, d), backward)
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")  # the peak is the present
    before = _peak()
    function()
    return _peak() - before


def _peak() -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _answer(question: str) -> None:
    print(json.dumps(measure(*json.loads(question))), flush=True)


def serve() -> None:
    for rival in RIVALS.values():
        with suppress(ImportError):
            importlib.import_module(rival.package.replace("-", "_"))
    for question in sys.stdin:
        process = multiprocessing.get_context("fork").Process(target=_answer, args=(question,))
        process.start()
        process.join()
        if process.exitcode:
            print("null", flush=True)


if __name__ == "__main__":
    serve()
