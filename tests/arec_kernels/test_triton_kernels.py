"""The Triton kernels against the float64 oracle, interpreted on the CPU or on a card.

Here in tiles so small that few rows make many, and down to the bit; what all backends have in common is
in the other files. `TRITON_INTERPRET=1 pytest` interprets (test_triton_interpreted.py does so in any run);
on a machine with a card plain `pytest` runs the same tests on it, and those that need one.
"""

from __future__ import annotations

import itertools
import math
import os

import pytest
import torch
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

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

pytestmark = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="needs TRITON_INTERPRET=1 or a GPU"
)
on_card = pytest.mark.skipif(INTERPRETED, reason="needs a GPU")

OPTIONS = [
    {"positives": positives, "denominator": denominator, "weighting": weighting}
    for positives, denominator, weighting in itertools.product(
        (True, False), ("negatives", "all"), ("label", "label-unnormalised", "printed")
    )
]
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


def rows(n: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """(n, d): views that differ by noise, of various lengths."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=generator)
    z[n // 2 :] = z[: n // 2] + 0.5 * z[n // 2 :]
    return (z * 2 ** torch.randn(n, 1, generator=generator)).to(DEVICE, dtype)


def clear_thresholds(z: Tensor, groups: Tensor | None = None) -> Tensor:
    """(N,) thresholds in the widest gap between a row's similarities, some above and below all."""
    s = reference.cosine_similarities(z.double())
    s = s.masked_fill(~reference.candidates(z, groups), 2).sort(dim=1).values
    gaps = torch.where(s[:, 1:] < 2, s[:, 1:] - s[:, :-1], 0.0)
    if gaps.shape[1] > 8:
        gaps[:, :2] = 0  # else mostly between the smallest two
    at = gaps.argmax(dim=1, keepdim=True)
    k = ((s.gather(1, at) + s.gather(1, at + 1)) / 2).squeeze(1)
    k[::7], k[1::7] = math.inf, -2.0
    return k.float()


def result(z: Tensor, k: Tensor, backend: str, dtype: torch.dtype, **options):
    """Loss (N,), gradients of z and k under fixed row weights (all in float64), statistics."""
    z, k = z.detach().to(dtype).requires_grad_(), k.detach().requires_grad_()
    oracle = {"backend": "triton"} if backend == "triton" else {}
    op = adaptive_info_nce if backend == "triton" else reference.adaptive_info_nce
    loss = op(z, k, reduction="none", **oracle, **options)
    stats = None
    if "histogram_bins" in options:
        loss, stats = loss
    weight = torch.linspace(-1, 2, len(loss), dtype=loss.dtype, device=loss.device)
    loss.backward(weight)
    grad_k = torch.zeros_like(k) if k.grad is None else k.grad
    return loss.detach().double(), z.grad.double(), grad_k.double(), stats


def check(z: Tensor, k: Tensor, exact: Tensor | None = None, **options) -> None:
    """The bar: fp32 by a fixed tolerance, all else twice the error of the reference so rounded.

    `exact` is z in the type in which the reference rounds as the kernels do (fp16 for TF32).
    """
    low = z if exact is None else exact
    temperature = options.get("temperature", 1.0)
    width = min(temperature, options.get("threshold_grad") or 1.0)
    loss, grad_z, grad_k, _ = result(z, k, "triton", z.dtype, **options)
    loss_64, grad_z_64, grad_k_64, _ = result(z, k, "reference", torch.float64, **options)
    loss_low, grad_z_low, grad_k_low, _ = result(low, k, "reference", low.dtype, **options)

    floor = 1e-6 if low.dtype is torch.float32 else 0.0
    bound = floor / temperature * loss_64.abs().clamp_min(1)
    if low.dtype is not torch.float32:
        bound = 2 * (loss_low - loss_64).abs().max() + 1e-6
    assert ((loss - loss_64).abs() <= bound).all()
    bound = 10 * floor / temperature * grad_z_64.norm()
    assert (grad_z - grad_z_64).norm() <= max(bound, 2 * (grad_z_low - grad_z_64).norm())
    bound = 10 * floor / width * grad_k_64.norm()
    assert (grad_k - grad_k_64).norm() <= max(bound, 2 * (grad_k_low - grad_k_64).norm())


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
def test_every_option(options: dict) -> None:
    z = rows(50, 7)
    groups = torch.arange(50, device=DEVICE) % 9 - 1
    check(z, clear_thresholds(z, groups), groups=groups, partner_weight=0.3, temperature=0.2,
          threshold_grad=0.1, **options)


@pytest.mark.parametrize("temperature", [1.0, 0.025, 0.02, 1e-3])  # shared shift up to 0.025
@pytest.mark.parametrize("denominator", ["negatives", "all"])
def test_temperature(temperature: float, denominator: str) -> None:
    z = rows(34, 12)
    check(z, clear_thresholds(z), temperature=temperature, denominator=denominator,
          threshold_grad=0.05)


@pytest.mark.parametrize(
    ("n", "d"),
    [
        (2, 1),  # nothing but partners
        (4, 3),
        (30, 16),  # last column tile not full
        (32, 17),  # whole tiles; one product more than fits
        (34, 15),  # one pair past the tile
        (66, 64),
        (18, 300),  # wider than one gradient block
    ],
)
@pytest.mark.parametrize("shape", [WIDE, TALL], ids=["wide", "tall"])
def test_shapes(n: int, d: int, shape: config.Tile) -> None:
    z = rows(n, d)
    with config.forced_tile(shape):
        check(z, clear_thresholds(z) if n > 4 else torch.full((n,), 0.1, device=DEVICE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [20, 260])
def test_half_precision(dtype: torch.dtype, d: int) -> None:
    z = rows(34, d, dtype)
    check(z, clear_thresholds(z), temperature=0.3)


def test_tf32(tf32: None) -> None:
    low = rows(34, 20, torch.float16)
    check(low.float(), clear_thresholds(low), exact=low, temperature=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_similarities_are_symmetric_to_the_bit(dtype: torch.dtype) -> None:
    for shape in (WIDE, TALL):
        with config.forced_tile(shape):
            s = similarities(rows(70, 50, dtype))
        assert torch.equal(s, s.T)


def test_forward_and_backward_decide_ties_alike() -> None:
    z = rows(50, 40)
    s = similarities(z)
    k = s.gather(1, (torch.arange(50, device=DEVICE)[:, None] + 7) % 50).squeeze(1)
    candidate = reference.candidates(z, None)
    _, stats = adaptive_info_nce(z, k, histogram_bins=1, backend="triton")
    assert torch.equal(stats.positives, (candidate & (s > k[:, None])).sum(dim=1))
    # A tie is a negative: the oracle gets there with thresholds that no rounding can reach.
    assert ((s - k[:, None]).abs() < 1e-5).logical_and(candidate).sum() == 50
    _, grad, _, _ = result(z, k, "triton", torch.float32)
    _, grad_64, _, _ = result(z, k + 1e-5, "reference", torch.float64)
    assert (grad - grad_64).norm() <= 1e-5 * grad_64.norm()


def test_extreme_rows() -> None:
    """Rows whose square overflows or underflows, and rows that count as zero."""
    z = rows(40, 5)
    z[1] *= 1e37
    z[2] *= 1e-11
    z[3] = 0
    z[4] = 1e-13
    k = clear_thresholds(z)
    k[3:5] = 0.5  # their similarities are all equal
    loss, grad, _, _ = result(z, k, "triton", torch.float32)
    loss_64, grad_64, _, _ = result(z, k, "reference", torch.float64)
    assert torch.allclose(loss, loss_64, rtol=1e-6, atol=1e-6)
    assert grad[3:5].eq(0).all()
    close = (grad - grad_64).norm(dim=1) <= 1e-5 * grad_64.norm(dim=1)
    assert close[[i for i in range(40) if i not in (1, 3, 4)]].all()
    # Its gradient is subnormal: one unit is 1.4e-45.
    assert ((grad[1] - grad_64[1]).abs() <= 1e-5 * grad_64[1].abs() + 2e-45).all()


def test_repeats_are_identical() -> None:
    z = rows(34, 6)
    k = clear_thresholds(z)
    first = result(z, k, "triton", torch.float32, threshold_grad=0.1, histogram_bins=9)
    for _ in range(2 if INTERPRETED else 1000):
        again = result(z, k, "triton", torch.float32, threshold_grad=0.1, histogram_bins=9)
        assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))
        assert torch.equal(first[3].histogram, again[3].histogram)


@pytest.mark.parametrize("bins", [1, 7, 100, 1100])  # 1100: more than one program holds
@pytest.mark.parametrize("grouped", [False, True])
def test_histogram(bins: int, grouped: bool) -> None:
    z = rows(42, 9)
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
    z = rows(36, 9)
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
