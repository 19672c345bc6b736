"""A Triton driver for a card that is not there: kernels compile for it, and launches do nothing.

The launchers run unchanged on CPU tensors, so that what is compiled is what a user's call compiles.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


@dataclass(frozen=True)
class Cubin:
    name: str
    shared: int  # bytes of shared memory
    binary: bytes

    def resources(self) -> dict[str, int]:
        """REG, STACK, LOCAL, … as `cuobjdump --dump-resource-usage` reports them."""
        return {
            key: int(value)
            for key, value in re.findall(r"([A-Z]+):(\d+)", self._dump("--dump-resource-usage"))
        }

    def disassembly(self) -> str:
        return self._dump("-sass")

    def _dump(self, what: str) -> str:
        tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.binary)
            file.flush()
            return subprocess.run(
                [tools / "cuobjdump", what, file.name], check=True, capture_output=True, text=True,
                env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},  # calls nvdisasm
            ).stdout


class OfflineDriver(DriverBase):
    """Compiles for `capability` (say, 90), keeps each kernel's cubin, and counts launches."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.cubins: list[Cubin] = []
        self.launches = 0
        self.utils = self

    @staticmethod
    def is_active() -> bool:
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_active_torch_device(self) -> None:
        return None

    def get_benchmarker(self) -> None:
        return None

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # kernels are cached by device: one for each architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 1 << 30}  # the tests assert the real limit

    def launcher_cls(self, src: object, metadata: object) -> Callable:
        return self.launch

    @staticmethod
    def launch(*args: object) -> None:
        """Runs nothing, for whichever offline driver is active: loaded kernels outlive theirs."""
        triton.runtime.driver.active.launches += 1

    def load_binary(
        self, name: str, binary: bytes, shared: int, device: int
    ) -> tuple[None, None, int, int, int]:
        self.cubins.append(Cubin(name, shared, binary))
        return None, None, 0, 0, 1024
