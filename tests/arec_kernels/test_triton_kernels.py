"""The Triton kernels against the float64 oracle, interpreted on the CPU or on a card.

Here in tiles so small that few rows make many, and down to the bit; what all backends have in common is
in the other files. `TRITON_INTERPRET=1 pytest` interprets (test_triton_interpreted.py does so in any run);
on a machine with a card plain `pytest` runs the same tests on it, and those that need one.
"""

from __future__ import annotations

import math

import pytest
import torch
from available import INTERPRETED
from correctness import OPTIONS, assert_correct, clear_thresholds, make_groups, make_rows, run
from torch import Tensor

from arec_kernels import (
    adaptive_info_nce,
    reference,
    row_similarity_quantile,
    similarity_histogram,
)

triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = pytest.importorskip("triton.language")
config = pytest.importorskip("arec_kernels.triton.config")
normalize = pytest.importorskip("arec_kernels.triton.normalize")
tile = pytest.importorskip("arec_kernels.triton.tile")
probes = pytest.importorskip("triton_probes")

DEVICE = "cpu" if INTERPRETED else "cuda"

pytestmark = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="needs TRITON_INTERPRET=1 or a GPU"
)
WIDE = config.Tile(32, 16, 32, 4, 1)
TALL = config.Tile(16, 32, 16, 4, 1)


@pytest.fixture(autouse=True)
def small_tile():
    """Tiles small enough that small problems have several of each kind."""
    with config.forced_tile(WIDE):
        yield


@pytest.fixture
def tf32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@triton.jit
def similarities_kernel(
    unit_ptr,
    out_ptr,
    n,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first_row = tl.program_id(0) * ROWS
    i = first_row + tl.arange(0, ROWS)
    row_block = tile.load_block(unit_ptr, first_row, 0, WIDTH, ROWS, BLOCK_K)
    for first_column in range(0, n, COLUMNS):
        s, _ = tile.similarity_tile(
            unit_ptr, row_block, first_row, first_column, WIDTH, BLOCK_K, ROWS, COLUMNS, PRECISION
        )
        j = first_column + tl.arange(0, COLUMNS)
        inside = (i < n)[:, None] & (j < n)[None, :]
        tl.store(out_ptr + i[:, None] * n + j[None, :], s, mask=inside)


def similarities(z: Tensor) -> Tensor:
    """(N, N) as the kernels see them, to the bit."""
    plan = config.plan(z)
    s = torch.empty(len(z), len(z), device=z.device)
    unit, _ = normalize.normalize(z, plan)
    similarities_kernel[(plan.row_blocks(),)](unit, s, len(z), **plan.constants())
    return s


def test_rounding_to_tf32() -> None:
    x = torch.randn(4096, device=DEVICE) * 2.0 ** torch.randint(-60, 60, (4096,), device=DEVICE)
    x[:4] = torch.tensor([0.0, math.nan, 1 + 2**-11, 1 + 2**-12])
    y = x.clone()
    probes.nearest_tf32_kernel[(1,)](y, BLOCK=4096)
    assert (y.view(torch.int32) & 0x1FFF)[~x.isnan()].eq(0).all()  # the bits TF32 has not
    x, y = x.double(), y.double()
    assert torch.equal(x.isnan(), y.isnan())
    half_a_unit = torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent - 12)
    assert ((y - x).abs() <= half_a_unit)[~x.isnan()].all()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("temperature", [0.2, 0.02])
def test_every_option(options: dict, temperature: float) -> None:
    z = make_rows(50, 7, device=DEVICE)
    groups = make_groups(50, DEVICE)
    assert_correct(z, clear_thresholds(z, groups), "triton", groups=groups, partner_weight=0.3,
                   temperature=temperature, threshold_grad=0.1, histogram_bins=9, **options)


@pytest.mark.parametrize(
    ("n", "d"),
    [
        (2, 1),  # nothing but partners
        (4, 3),
        (30, 16),  # last column tile not full
        (32, 17),  # whole tiles; one product more than fits
        (34, 15),  # one pair past the tile
        (66, 64),
        (110, 4),  # the last column tile meets rows far from both diagonals
        (18, 300),  # wider than one gradient block
    ],
)
@pytest.mark.parametrize("shape", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shapes(n: int, d: int, shape: config.Tile, dtype: torch.dtype) -> None:
    z = make_rows(n, d, dtype, device=DEVICE)
    with config.forced_tile(shape):
        assert_correct(z, clear_thresholds(z), "triton", temperature=0.3)


@pytest.mark.parametrize(("temperature", "cosine"), [(1.0, 0.7), (0.02, 0.99)])
def test_many_additions_lose_no_more_than_one(temperature: float, cosine: float) -> None:
    # Two directions in turn: every tile adds the same, and every addition would round the same way.
    n = 512
    z = torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]], device=DEVICE).repeat(n // 2, 1)
    threshold = torch.full((n,), -1.0, device=DEVICE)
    with config.forced_tile(config.Tile(128, 16, 16, 4, 1)):
        _, log_denominator, _, positives, _ = torch.ops.arec_kernels.triton_forward(
            z, threshold, None, temperature, True, 0.5, "all", "label", "none", 0, 0, n // 2
        )
        s = similarities(z).double()
    candidate = reference.candidates(z, None)
    expected = torch.where(candidate, s, 0).sum(dim=1)
    torch.testing.assert_close(positives.double(), expected, rtol=1.2e-7, atol=0)
    inside = candidate | torch.eye(n, dtype=torch.bool, device=DEVICE).roll(n // 2, 1)
    expected = torch.where(inside, s / temperature, -math.inf).logsumexp(dim=1)
    torch.testing.assert_close(log_denominator, expected, rtol=1.2e-7, atol=0)


def test_tf32(tf32: None) -> None:
    assert_near_float16(make_rows(34, 20, torch.float16, device=DEVICE))


def assert_near_float16(low: Tensor) -> None:
    """In TF32 at most twice as far off as PyTorch in float16, whose mantissa is as long."""
    k = clear_thresholds(low)
    result = run(adaptive_info_nce, low.float(), k, torch.float32, backend="triton", temperature=0.3)
    exact = run(reference.adaptive_info_nce, low, k, torch.float64, temperature=0.3)
    rounded = run(reference.adaptive_info_nce, low, k, torch.float16, temperature=0.3)
    error = (result.loss - exact.loss).abs().max()
    assert error <= 2 * (rounded.loss - exact.loss).abs().max() + 1e-6
    assert (result.grad_z - exact.grad_z).norm() <= 2 * (rounded.grad_z - exact.grad_z).norm()


@pytest.mark.skipif(INTERPRETED, reason="the table's tiles take the interpreter too long")
@pytest.mark.parametrize("n", [512, 1 << 20])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("operands", ["fp32", "bf16", "fp16"])
def test_tiles_of_the_table(operands: str, width: int, n: int) -> None:
    """Those that few and many rows take, on the fastest matrix units of the card."""
    major, minor = torch.cuda.get_device_capability()
    entry = config.table_tile(10 * major + minor, operands, width, n)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[operands]
    with config.forced_tile(entry):
        for d in (width, width - 1):
            z = make_rows(270, d, dtype, device=DEVICE)
            k = clear_thresholds(z)
            assert_correct(z, k, "triton", temperature=0.3)
            assert_correct(z, k, "triton", temperature=0.3, threshold_grad=0.1,
                           groups=make_groups(270, DEVICE))  # fmt: skip
        s = similarities(z)
        assert torch.equal(s, s.T)


@pytest.mark.skipif(INTERPRETED, reason="the table's tiles take the interpreter too long")
@pytest.mark.parametrize("n", [512, 1 << 20])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_tf32_tiles_of_the_table(tf32: None, width: int, n: int) -> None:
    major, minor = torch.cuda.get_device_capability()
    with config.forced_tile(config.table_tile(10 * major + minor, "tf32", width, n)):
        low = make_rows(270, width - 1, torch.float16, device=DEVICE)
        assert_near_float16(low)
        s = similarities(low.float())
        assert torch.equal(s, s.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_similarities_are_symmetric_to_the_bit(dtype: torch.dtype) -> None:
    for shape in (WIDE, TALL):
        with config.forced_tile(shape):
            s = similarities(make_rows(70, 50, dtype, device=DEVICE))
        assert torch.equal(s, s.T)


def test_forward_and_backward_decide_ties_alike() -> None:
    z = make_rows(50, 40, device=DEVICE)
    s = similarities(z)
    k = s.gather(1, (torch.arange(50, device=DEVICE)[:, None] + 7) % 50).squeeze(1)
    candidate = reference.candidates(z, None)
    _, stats = adaptive_info_nce(z, k, histogram_bins=1, backend="triton")
    assert torch.equal(stats.positives, (candidate & (s > k[:, None])).sum(dim=1))
    # A tie is a negative: the oracle gets there with thresholds that no rounding can reach.
    assert ((s - k[:, None]).abs() < 1e-5).logical_and(candidate).sum() == 50
    grad = run(adaptive_info_nce, z, k, torch.float32, backend="triton").grad_z
    exact = run(reference.adaptive_info_nce, z, k + 1e-5, torch.float64).grad_z
    assert (grad - exact).norm() <= 1e-5 * exact.norm()


@pytest.mark.parametrize("bins", [1, 7, 100, 1100])  # 1100: more than one program holds
@pytest.mark.parametrize("grouped", [False, True])
def test_histogram(bins: int, grouped: bool) -> None:
    z = make_rows(42, 9, device=DEVICE)
    groups = torch.arange(42, device=DEVICE) % 6 - 1 if grouped else None
    s = similarities(z)[reference.candidates(z, groups)]
    bin_of = ((s + 1) / 2 * bins).floor().clamp(0, bins - 1).long()
    expected = torch.bincount(bin_of, minlength=bins)
    assert torch.equal(similarity_histogram(z, bins, groups=groups, backend="triton"), expected)
    _, stats = adaptive_info_nce(z, 0.3, groups=groups, histogram_bins=bins, backend="triton")
    assert torch.equal(stats.histogram, expected)
    # The oracle's own similarities may differ in the last bit, and so by a neighbouring bin.
    oracle = reference.similarity_histogram(z.double(), bins, groups=groups)
    assert (oracle.cumsum(0) - expected.cumsum(0)).abs().max() <= 2


@pytest.mark.parametrize("q", [0.0, 0.37, 0.9, 1.0])
def test_quantile_is_exact(q: float) -> None:
    z = make_rows(36, 9, device=DEVICE)
    z[20:28] = z[4]  # similarities that tie
    groups = torch.arange(36, device=DEVICE) % 5 - 1
    groups[7] = 40
    s = similarities(z)
    ordered = s.masked_fill(~reference.candidates(z, groups), math.inf).sort(dim=1).values
    n = reference.candidates(z, groups).sum(dim=1)
    r = (q * n.double()).floor().long()[:, None]
    expected = (ordered.gather(1, (r - 1).clamp_min(0)) + ordered.gather(1, r)).squeeze(1) / 2
    expected = expected.masked_fill(r[:, 0] == 0, -math.inf).masked_fill(r[:, 0] == n, math.inf)
    k = row_similarity_quantile(z, q, groups=groups, backend="triton")
    assert torch.equal(k, expected)
    oracle = reference.row_similarity_quantile(z.double(), q, groups=groups)
    assert torch.allclose(k.double(), oracle, rtol=0, atol=1e-6)
