"""Builds and loads the CUDA kernels as plain C++: emulated_cuda/machine.h stands in for a card.

The same sources that nvcc compiles then run on CPU tensors, as the backend "cuda" of these tests.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

from arec_kernels.registration import IMPLEMENTED

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "cuda"
EMULATOR = Path(__file__).parent / "emulated_cuda"
COMPILER = os.environ.get("CXX", "c++").split()
# As setup.py has them, for any compiler.
FLAGS = ["-std=c++17", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DAREC_SCHEMAS=0"]
for path in [*include_paths(), sysconfig.get_path("include")]:
    FLAGS += ["-isystem", path]
EMULATING = [*FLAGS, "-O2", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", f"-I{EMULATOR}"]


def available() -> bool:
    """Whether there is a gcc that knows half precision (and fibers as the emulator writes them)."""
    if not shutil.which(COMPILER[0]):
        return False
    source = b"_Float16 x; __attribute__((naked, noipa)) void f() {}"
    command = [*COMPILER, "-Werror", "-fsyntax-only", "-x", "c++", "-"]
    return not subprocess.run(command, input=source, capture_output=True, check=False).returncode


@functools.cache
def load() -> None:
    """Makes CPU tensors run under `backend="cuda"`, in this process."""
    torch.ops.load_library(str(_built()))
    IMPLEMENTED.add(("cuda", "cpu"))


def _built() -> Path:
    """The library, compiled anew where anything that it consists of has changed."""
    digest = hashlib.sha256(f"{EMULATING} {COMPILER} {torch.__version__}".encode())
    for file in sorted([*SOURCES.iterdir(), ROOT / "csrc" / "loss.h", *EMULATOR.iterdir()]):
        digest.update(file.read_bytes())
    folder = ROOT / "build" / "emulated_cuda" / digest.hexdigest()[:16]
    library = folder / "emulated_cuda.so"
    if library.is_file():
        return library
    folder.mkdir(parents=True, exist_ok=True)

    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}-{os.getpid()}.o"
        _run([*COMPILER, *EMULATING, "-x", "c++", "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sorted(SOURCES.glob("*.cu"))))
    partial = folder / f"{os.getpid()}.so"
    libraries = [f"-L{path}" for path in library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"]
    _run([*COMPILER, "-shared", *map(str, objects), "-o", str(partial), *libraries])
    partial.rename(library)
    for file in objects:
        file.unlink()
    return library


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
