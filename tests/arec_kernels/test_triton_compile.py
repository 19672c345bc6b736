"""Every configuration of the Triton kernels compiles for its cards, fits them and does not spill.

No card is needed: launches go to a driver that compiles and runs nothing. What is compiled, for
which arguments, is what the same call compiles on a card.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter does not compile", allow_module_level=True)

from triton.runtime import driver
from triton_offline import OfflineDriver
from triton_probes import nearest_tf32_kernel

import arec_kernels.triton as kernels
from arec_kernels.triton import config, launch

# Bytes of shared memory a program may have. The table's entries for 8.0 also run on 8.6, 8.9 and
# 12.0, which have the least.
SHARED_LIMIT = {80: 101_376, 90: 232_448, 100: 232_448}
DTYPES = {name: dtype for dtype, name in config.OPERANDS.items()} | {"tf32": torch.float32}
MANY, FEW = 1 << 16, 512
# Bytes that a thread of the backward kernel may spill in tiles that were the fastest on a card
# all the same: a tile beside the gradient of so many columns is more than the registers hold.
MEASURED_WITH_SPILLS = {
    (90, "tf32", 256): 1024,
    (90, "bf16", 128): 512,
    (90, "bf16", 256): 1024,
    (90, "fp16", 256): 1024,
}


@contextmanager
def offline(capability: int, operands: str) -> Iterator[OfflineDriver]:
    """Collects what is compiled for `capability`; TF32 products where `operands` says so."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if operands == "fp32" else "high")
    offline_driver = OfflineDriver(capability)
    driver.set_active(offline_driver)
    try:
        yield offline_driver
    finally:
        driver.set_active(None)
        torch.set_float32_matmul_precision(precision)


def loss_and_gradient(
    z: torch.Tensor, tile: config.Tile, temperature: float = 1.0, grouped: bool = False,
    weighting: str = "label", threshold_grad: float = 0.0, bins: int = 0,
    local: tuple[int, int] | None = None,
) -> None:
    k = torch.zeros(len(z))
    groups = torch.zeros(len(z), dtype=torch.int64) if grouped else None
    options = (temperature, True, 0.5, "negatives", weighting, "mean")
    local = local or (0, len(z) // 2)
    with config.forced_tile(tile):
        loss, log_d, m, s, _ = kernels.forward(z, k, groups, *options, bins, *local)
        kernels.backward(loss, z, k, groups, log_d, m, s, *options, threshold_grad, *local)


def compiled(call: Callable, capability: int, operands: str, width: int, n: int, **options):
    tile = config.table_tile(capability, operands, width, n)
    with offline(capability, operands) as target:
        call(torch.zeros(64, width, dtype=DTYPES[operands]), tile, **options)
    assert all(cubin.shared <= SHARED_LIMIT[capability] for cubin in target.cubins)
    return {cubin.name: cubin.resources() for cubin in target.cubins}


@pytest.mark.parametrize(
    ("capability", "operands", "width"),
    [
        (capability, operands, width)
        for capability, by_operands in config.TABLE.items()
        for operands, by_width in by_operands.items()
        for width in by_width
    ],
)
def test_table(capability: int, operands: str, width: int) -> None:
    resources = compiled(loss_and_gradient, capability, operands, width, MANY)
    spills = {"backward_kernel": MEASURED_WITH_SPILLS.get((capability, operands, width), 0)}
    for name in ("forward_kernel", "backward_kernel"):
        assert resources[name]["STACK"] <= spills.get(name, 0), "registers spill"
        assert resources[name]["LOCAL"] == 0
        assert resources[name]["REG"] <= 255


@pytest.mark.parametrize(
    ("capability", "operands"), [(80, "bf16"), (90, "bf16"), (90, "tf32"), (100, "bf16")]
)
def test_tiles_for_few_rows(capability: int, operands: str) -> None:
    assert config.table_tile(capability, operands, 64, FEW).rows == config.MIN_ROWS
    resources = compiled(loss_and_gradient, capability, operands, 64, FEW)
    for name in ("forward_kernel", "backward_kernel"):
        assert resources[name]["STACK"] == resources[name]["LOCAL"] == 0, "registers spill"


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("operands", ["fp32", "bf16"])
def test_rows_of_one_process(capability: int, operands: str) -> None:
    resources = compiled(loss_and_gradient, capability, operands, 64, MANY, local=(16, 24))
    for name in ("forward_kernel", "backward_kernel"):
        assert resources[name]["STACK"] == resources[name]["LOCAL"] == 0, "registers spill"


@pytest.mark.parametrize(("capability", "width"), [(80, 384), (90, 64), (100, 384)])
def test_every_option_fits(capability: int, width: int) -> None:
    block = min(width, config.WIDE_BLOCK)
    tile = config.table_tile(capability, "bf16", block, MANY)
    with offline(capability, "bf16") as target:
        z = torch.zeros(64, width, dtype=torch.bfloat16)
        loss_and_gradient(
            z, tile, temperature=0.01, grouped=True, weighting="printed", threshold_grad=0.1,
            bins=1024,
        )
        with config.forced_tile(tile):
            kernels.histogram(z, None, 2048)
            kernels.quantile(z, 0.5, None)
            kernels.uniformity(z)
    names = {cubin.name for cubin in target.cubins}
    assert {"histogram_kernel", "quantile_kernel", "uniformity_kernel"} < names
    assert all(cubin.shared <= SHARED_LIMIT[capability] for cubin in target.cubins)


@pytest.mark.parametrize("shape", [(2, 1), (1, 16)])
def test_sizes_of_one_compile(shape: tuple[int, int]) -> None:
    """Triton makes a constant of every integer argument that is 1."""
    z = torch.zeros(shape)
    with offline(90, "fp32"):
        kernels.uniformity(z)
        if len(z) > 1:
            loss_and_gradient(z, config.table_tile(90, "fp32", 16, 2), threshold_grad=0.1, bins=1)
            kernels.histogram(z, None, 1)
            kernels.quantile(z, 0.5, None)


def test_four_launches() -> None:
    tile = config.table_tile(90, "bf16", 64, FEW)
    with offline(90, "bf16") as target:
        loss_and_gradient(torch.zeros(64, 64, dtype=torch.bfloat16), tile)
    assert target.launches == 4


def test_launches_tell_apart_what_triton_compiles_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch that took one kernel for another would read, say, rows that are not aligned as if."""
    aligned = torch.zeros(64, 16)
    unaligned = torch.zeros(64 * 16 + 1)[1:].view(64, 16)
    calls = [aligned, unaligned, aligned[:40], aligned[:, :3], aligned[:, :1], aligned]

    def compiled_for(device: int, *, anew: bool) -> set[tuple[str, bytes]]:
        with offline(90, "fp32") as target:
            monkeypatch.setattr(target, "get_current_device", lambda: device)  # with nothing cached
            for x in calls:
                if anew:  # Triton's own analysis of the arguments decides
                    launch._compiled.clear()
                kernels.uniformity(x)
        return {(cubin.name, cubin.binary) for cubin in target.cubins}

    by_triton = compiled_for(1001, anew=True)
    assert len(by_triton) > 2, "or the calls tell nothing"
    assert compiled_for(1002, anew=False) == by_triton


def test_products_run_on_the_warpgroup_units_of_hopper() -> None:
    tile = config.table_tile(90, "bf16", 64, MANY)
    with offline(90, "bf16") as target:
        loss_and_gradient(torch.zeros(64, 64, dtype=torch.bfloat16), tile)
    assert all(
        "HGMMA" in cubin.disassembly()
        for cubin in target.cubins
        if cubin.name in ("forward_kernel", "backward_kernel")
    )


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_either_api_of_torch_sets_the_precision(precision: str) -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = precision
        with config.forced_tile(config.table_tile(90, "tf32", 64, MANY)):
            assert config.plan(torch.zeros(4, 3)).precision == precision
    finally:
        matmul.fp32_precision = before


def test_rounding_to_tf32_is_not_fused_away() -> None:
    with offline(90, "tf32") as target:
        nearest_tf32_kernel[(1,)](torch.zeros(128), BLOCK=128)
    assembly = target.cubins[0].disassembly()
    assert assembly.count("FFMA") == 1 and assembly.count("FADD") == 2


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 103, 120, 121])
def test_every_card_has_a_tile(capability: int) -> None:
    for operands, block_d, n in product(DTYPES, (16, 32, 64, 128, 256), (2, 5000, 1 << 20)):
        tile = config.table_tile(capability, operands, block_d, n)
        assert config.MIN_ROWS <= tile.rows <= 128 and tile.warps >= 4
        if capability in (86, 89, 120, 121):
            assert tile == config.table_tile(80, operands, block_d, n), "not of a data centre's shared memory"
