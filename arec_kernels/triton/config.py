"""Tile shapes by architecture and problem: one small table, no tuning at a user's first call.

Those of 90 for the tensor cores are the fastest of one to two dozen on an H200, forward + backward
of 16,384 to 65,536 rows; how far they shrink for few rows was timed at 512, 2,048 and 8,192. The
others were chosen from the registers, shared memory and instructions of the compiled code, and not
timed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import triton
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Tile:
    """A tile of the similarity matrix and the program that computes it.

    Forward and backward of a call run the same tile, so that they see the same bits.
    """

    rows: int
    columns: int
    k: int  # columns of the normalised rows in one product; wider rows take several
    warps: int
    stages: int  # of the software pipeline over the columns
    # Limit for a thread of the backward kernel. By itself the assembler may take so many that only
    # one program fits a multiprocessor, or so few that they spill.
    registers: int | None = None


# Tile(rows, columns, k, warps, stages, registers) by architecture (the oldest compute capability),
# operands and row width, for many rows. "fp32" runs on the CUDA cores, "tf32" (also fp32 tensors),
# "bf16" and "fp16" on the tensor cores. The entries of 80 fit 99 KiB of shared memory, the least.
FP32_TILES = {
    64: Tile(64, 64, 32, 8, 2),
    128: Tile(64, 32, 32, 8, 2),
    256: Tile(32, 32, 32, 8, 2, 168),
}
TABLE: dict[int, dict[str, dict[int, Tile]]] = {
    80: {
        "fp32": FP32_TILES,
        "tf32": {
            64: Tile(128, 32, 64, 8, 2),
            128: Tile(64, 32, 128, 8, 2),
            256: Tile(32, 32, 64, 8, 2),
        },
        "bf16": {
            64: Tile(128, 64, 64, 8, 3),
            128: Tile(128, 64, 128, 8, 2),
            256: Tile(64, 32, 256, 8, 2),
        },
        "fp16": {
            64: Tile(128, 64, 64, 8, 3),
            128: Tile(128, 64, 128, 8, 2),
            256: Tile(64, 32, 256, 8, 2),
        },
    },
    90: {
        "fp32": FP32_TILES,
        "tf32": {
            64: Tile(128, 64, 64, 8, 4),
            128: Tile(128, 64, 128, 8, 3),
            256: Tile(64, 64, 64, 4, 3),
        },
        "bf16": {
            64: Tile(64, 128, 64, 4, 3, 168),  # three programs a multiprocessor
            128: Tile(128, 64, 128, 4, 2),
            256: Tile(64, 64, 256, 4, 2),
        },
        "fp16": {
            64: Tile(128, 64, 64, 8, 3),
            128: Tile(128, 64, 128, 8, 3),
            256: Tile(128, 64, 256, 8, 3),
        },
    },
    100: {
        "fp32": FP32_TILES,
        "tf32": {
            64: Tile(128, 64, 64, 8, 2),
            128: Tile(64, 64, 128, 8, 2),
            256: Tile(32, 32, 64, 8, 2),
        },
        "bf16": {
            64: Tile(128, 64, 64, 8, 3),
            128: Tile(64, 64, 128, 8, 3),
            256: Tile(64, 32, 256, 8, 2),
        },
        "fp16": {
            64: Tile(128, 64, 64, 8, 3),
            128: Tile(64, 64, 128, 8, 3),
            256: Tile(64, 32, 256, 8, 2),
        },
    },
}
OPERANDS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
INTERPRETER_TILE = Tile(64, 64, 64, 4, 1)

# A program per block of rows: with fewer rows than this many blocks, blocks get smaller.
ENOUGH_PROGRAMS = 128
MIN_ROWS = 16

# Wider rows are cut into gradient blocks of WIDE_BLOCK columns, each of which recomputes the tile.
MAX_WHOLE_WIDTH = 256
WIDE_BLOCK = 128

_forced_tile: Tile | None = None


# From this temperature on exp((s - 1)/tau) of any cosine is a normal fp32 number, so that all rows
# can share one shift and a pair's two exponentials are one. Below it each row uses its own. In the
# backward pass e^(1/tau) / D_i is a factor of a row, at most e^(2/tau), and the upstream gradient another.
MIN_SHARED_SHIFT_TEMPERATURE = 0.025
MIN_SHARED_SHIFT_TEMPERATURE_BACKWARD = 2 * MIN_SHARED_SHIFT_TEMPERATURE


@dataclass(frozen=True)
class Options:
    """The options of the loss that its kernels take, see `arec_kernels.adaptive_info_nce`."""

    temperature: float
    positives: bool
    partner_weight: float
    weighting: str

    def arguments(self) -> tuple[float, float, float, float]:
        """The kernels' arguments temperature, scale, partner_weight and rest_weight."""
        scale = math.log2(math.e) / self.temperature
        return self.temperature, scale, self.partner_weight, 1 - self.partner_weight

    def constants(self, *, backward: bool = False) -> dict[str, bool | str]:
        """The kernels' compile-time arguments for them."""
        shared = MIN_SHARED_SHIFT_TEMPERATURE_BACKWARD if backward else MIN_SHARED_SHIFT_TEMPERATURE
        return {
            "POSITIVES": self.positives,
            "WEIGHTING": self.weighting,
            "OWN_SHIFT": self.temperature < shared,
        }


@dataclass(frozen=True)
class Plan:
    """How one call runs: tile, padded shape, and the format of the normalised rows."""

    tile: Tile
    rows: int  # N, padded to whole tiles
    width: int  # D, padded
    block_d: int  # gradient columns a program
    precision: str  # of products of fp32 operands, "ieee" or "tf32"
    dropped_bits: int  # of the fp32 mantissa in the normalised rows, where no cast rounds them
    unit_dtype: torch.dtype  # of the normalised rows

    def constants(self) -> dict[str, int | str]:
        """The compile-time arguments that every kernel over tiles takes."""
        return {
            "WIDTH": self.width,
            "BLOCK_K": min(self.tile.k, self.block_d),
            "ROWS": self.tile.rows,
            "COLUMNS": self.tile.columns,
            "PRECISION": self.precision,
            "num_warps": self.tile.warps,
            "num_stages": self.tile.stages,
        }

    def row_blocks(self) -> int:
        return self.rows // self.tile.rows

    def local_blocks(self, n: int, begin: int, end: int) -> tuple[int, tuple[int, int, int]]:
        """How many blocks have rows [begin, end) of either view, and the arguments of `block_of_program`."""
        if end - begin == n // 2:
            return self.row_blocks(), (0, 0, 0)
        first, first_end = begin // self.tile.rows, triton.cdiv(end, self.tile.rows)
        second = max((n // 2 + begin) // self.tile.rows, first_end)
        second_end = triton.cdiv(n // 2 + end, self.tile.rows)
        blocks = first_end - first + second_end - second
        return blocks, (first, first_end, second - first_end)


def plan(z: Tensor) -> Plan:
    """The plan for `z` (N, D)."""
    # Set by torch.set_float32_matmul_precision() too, whose getter fails once this has been set.
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return _plan(*z.shape, z.dtype, z.device, tf32, _forced_tile)


@lru_cache
def _plan(
    n: int, d: int, dtype: torch.dtype, device: torch.device, tf32: bool, forced: Tile | None
) -> Plan:
    if d <= MAX_WHOLE_WIDTH:
        width = block_d = max(16, triton.next_power_of_2(d))
    else:
        width, block_d = _round_up(d, WIDE_BLOCK), WIDE_BLOCK
    operands = OPERANDS[dtype]
    if operands == "fp32" and tf32:
        operands = "tf32"
    tile = forced or _choose_tile(device, operands, block_d, n)
    return Plan(
        tile=tile,
        rows=_round_up(n, max(tile.rows, tile.columns)),
        width=width,
        block_d=block_d,
        precision="ieee" if operands == "fp32" else "tf32",
        dropped_bits=13 if operands == "tf32" else dropped_bits(dtype),
        # The interpreter multiplies bfloat16 wrongly: there the rounded rows stay in fp32.
        unit_dtype=torch.float32 if INTERPRETED and dtype is torch.bfloat16 else dtype,
    )


def dropped_bits(dtype: torch.dtype) -> int:
    """Bits to round off an fp32 mantissa before a cast to `dtype` that may cut them off."""
    return 16 if dtype is torch.bfloat16 else 0


def _choose_tile(device: torch.device, operands: str, block_d: int, n: int) -> Tile:
    if device.type != "cuda":
        return INTERPRETER_TILE
    major, minor = torch.cuda.get_device_capability(device)
    return table_tile(10 * major + minor, operands, block_d, n)


def table_tile(capability: int, operands: str, block_d: int, n: int) -> Tile:
    """The table's tile for `n` rows of up to `block_d` columns on compute capability/10."""
    # Data-centre cards from Hopper on have 227 KiB of shared memory; consumer cards (12.0) do not.
    architecture = max(a for a in TABLE if a <= capability) if capability < 120 else 80
    tile = TABLE[architecture][operands][max(64, block_d)]
    while tile.rows > MIN_ROWS and n < tile.rows * ENOUGH_PROGRAMS:
        tile = replace(tile, rows=tile.rows // 2, warps=max(4, tile.warps // 2))
    return tile


@contextmanager
def forced_tile(tile: Tile) -> Iterator[None]:
    """Runs `tile` whatever the table says: for tests, and to search for better entries."""
    global _forced_tile
    before, _forced_tile = _forced_tile, tile
    try:
        yield
    finally:
        _forced_tile = before


def device_of(z: Tensor) -> AbstractContextManager:
    """Launches go to the current device: makes it the one `z` is on."""
    return torch.cuda.device(z.device) if z.is_cuda else nullcontext()


def _round_up(x: int, multiple: int) -> int:
    return -(-x // multiple) * multiple
