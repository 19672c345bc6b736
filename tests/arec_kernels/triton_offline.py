"""A Triton driver for a card that is not there: kernels compile for it, and launches do nothing.

The launchers run unchanged on CPU tensors, so that what is compiled is what a user's call compiles.
"""

from __future__ import annotations

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
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.binary)
            file.flush()
            text = subprocess.run(
                [tool, "--dump-resource-usage", file.name],
                check=True, capture_output=True, text=True,
            ).stdout
        return {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", text)}


class OfflineDriver(DriverBase):
    """Compiles for `capability` (say, 90) and keeps each kernel's cubin in `cubins`."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.cubins: list[Cubin] = []
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
        return lambda *args: None

    def load_binary(
        self, name: str, binary: bytes, shared: int, device: int
    ) -> tuple[None, None, int, int, int]:
        self.cubins.append(Cubin(name, shared, binary))
        return None, None, 0, 0, 1024
