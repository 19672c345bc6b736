"""What is particular to the C++ backend: instruction sets, threads, the exponential, memory, size."""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from available import needs_cpp
from correctness import (
    NAN_OF_A_GPU,
    OPTIONS,
    assert_correct,
    clear_thresholds,
    make_groups,
    make_rows,
    run,
)

from arec_kernels import (
    adaptive_info_nce,
    alignment_uniformity,
    reference,
    row_similarity_quantile,
    similarity_histogram,
)

pytestmark = needs_cpp
KERNELS = Path(__file__).parents[2] / "csrc/cpu/kernels.cpp"
AMX = [f"-m{name}" for name in ("avx512f", "avx512bw", "avx512vl", "avx512dq", "amx-tile", "amx-bf16")]
# With the type of input that each has kernels of its own for.
INSTRUCTION_SETS = (
    ("amx", torch.float32), ("amx", torch.bfloat16), ("avx512bf16", torch.bfloat16),
    ("avx512", torch.float32), ("avx2", torch.float32), ("portable", torch.float32),
)  # fmt: skip


@pytest.fixture(
    params=INSTRUCTION_SETS, ids=lambda param: f"{param[0]}-{str(param[1]).removeprefix('torch.')}"
)
def input_type(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> torch.dtype:
    """The type of input, with the instruction set forced."""
    isa, dtype = request.param
    monkeypatch.setenv("AREC_CPU_ISA", isa)
    try:
        torch.ops.arec_kernels.cpu_exp2(torch.zeros(16))
    except RuntimeError:
        pytest.skip(f"this machine or this build has no {isa}")
    return dtype


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("temperature", [0.5, 0.01])  # one shift for all rows, and one for each
def test_every_instruction_set_is_correct(
    input_type: torch.dtype, options: dict, temperature: float
) -> None:
    # Three tiles, the last with two rows.
    z, groups = make_rows(130, 19, input_type), make_groups(130)
    assert_correct(z, clear_thresholds(z, groups), "cpp", groups=groups, temperature=temperature,
                   threshold_grad=0.1, histogram_bins=20, **options)


@pytest.mark.parametrize("n", [2, 62, 64, 66, 126, 128])
def test_every_instruction_set_finds_the_partners(input_type: torch.dtype, n: int) -> None:
    """Partners at, just under and just over the side of a tile apart, and that of two."""
    z = make_rows(n, 19, input_type)
    assert_correct(z, clear_thresholds(z), "cpp", temperature=0.2, threshold_grad=0.1)


def test_upstream_gradients_of_any_size(input_type: torch.dtype) -> None:
    z = make_rows(130, 19, input_type).requires_grad_()
    k = clear_thresholds(z.detach()).float().requires_grad_()
    loss = adaptive_info_nce(z, k, temperature=0.2, threshold_grad=0.1, reduction="sum", backend="cpp")

    def gradients(upstream: float) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(loss, (z, k), torch.tensor(upstream), retain_graph=True)

    for factor in (2.0**-100, 2.0**112):
        for got, one in zip(gradients(factor), gradients(1.0), strict=True):
            assert torch.equal(got, (one.double() * factor).to(got.dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [1, 2, 17, 64, 130])  # odd widths leave half a pair
def test_half_precision_on_every_instruction_set(
    input_type: torch.dtype, dtype: torch.dtype, d: int
) -> None:
    if dtype is torch.float16 and input_type is torch.bfloat16:
        pytest.skip("these kernels are for bfloat16")
    z = make_rows(194, d, dtype)
    assert_correct(z, clear_thresholds(z), "cpp", temperature=0.2)


def test_float16_out_of_its_range(input_type: torch.dtype) -> None:
    """Subnormal numbers keep their digits, larger ones than float16 has are infinite."""
    if input_type is torch.bfloat16:
        pytest.skip("these kernels are for bfloat16")
    z = torch.randint(1, 9, (130, 24), generator=torch.Generator().manual_seed(0)).half()

    def loss_and_gradient(scale: float, upstream: float) -> tuple[torch.Tensor, torch.Tensor]:
        rows = (z * scale).requires_grad_()
        loss = adaptive_info_nce(rows, 0.9, temperature=0.2, reduction="sum", backend="cpp")
        return loss.detach(), torch.autograd.grad(loss, rows, torch.tensor(upstream))[0]

    loss, gradient = loss_and_gradient(1, 2.0**8)
    smallest_normal = torch.finfo(torch.float16).smallest_normal
    assert gradient.isfinite().all() and gradient.abs().min() > smallest_normal
    assert torch.equal(loss_and_gradient(2**-24, 1)[0], loss)  # every number of z subnormal
    assert gradient.abs().max() * 2.0**-20 > 64 * 2.0**-24, "subnormal numbers of some digits"
    for factor in (2.0**-24, 2.0**-20, 2.0**16):
        expected = gradient.double() * factor
        got = loss_and_gradient(1, 2.0**8 * factor)[1]
        overflows = expected.abs() > 65520
        expected = expected.where(~overflows, expected.sign() * math.inf)
        # Each of the two is rounded once, to 11 bits, or to the spacing of subnormal numbers: 2^-24.
        small = expected.abs() < smallest_normal
        for part, spacing in ((small, 2.0**-24), (~small, 0)):
            torch.testing.assert_close(
                got.double()[part], expected[part], rtol=2**-10, atol=spacing / 2
            )
        assert overflows.any() == (factor > 1)
        assert (got.abs() < smallest_normal).any() == (factor < 1)


@pytest.mark.parametrize("compiler", ["g++-11", "clang++", "aarch64-linux-gnu-g++"])
def test_other_compilers_take_the_kernels(compiler: str) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"there is no {compiler}")
    done = subprocess.run(
        [compiler, "-std=c++17", "-fsyntax-only", "-DAREC_ISA=portable", KERNELS],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("flags", [[], AMX], ids=["portable", "amx"])
def test_kernels_define_nothing_that_the_linker_could_share(flags: list[str], tmp_path: Path) -> None:
    """Such a function of a header, with instructions of one set, could become the copy of all."""
    compiler, nm = shutil.which("c++"), shutil.which("nm")
    if not compiler or not nm or flags and platform.machine() != "x86_64":
        pytest.skip("needs c++ and nm, and for AMX an x86-64")
    compile_ = [compiler, "-std=c++17", "-O0", *flags, "-DAREC_ISA=any", "-c", KERNELS, "-o", tmp_path / "any.o"]
    if subprocess.run(compile_, capture_output=True, check=False).returncode and flags:
        pytest.skip("the compiler has no AMX")
    listed = subprocess.run(
        [nm, "--defined-only", "--format=posix", tmp_path / "any.o"], capture_output=True, text=True, check=True
    ).stdout
    symbols = dict(line.split()[:2] for line in listed.splitlines())
    assert any("kernels_any" in name for name in symbols)
    shared = {name for name, kind in symbols.items() if kind in "WVu"}
    assert shared <= {"DW.ref.__gxx_personality_v0"}  # which code for exceptions refers to


@pytest.mark.parametrize("input_type", INSTRUCTION_SETS[:2], indirect=True)
def test_tile_registers_are_shared_with_the_matrix_products_of_torch(input_type: torch.dtype) -> None:
    """oneDNN keeps its own layout of them, on the same threads."""
    x, z = make_rows(256, 256, torch.bfloat16), make_rows(514, 64, input_type).requires_grad_()

    def product_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        loss = adaptive_info_nce(z, 0.1, backend="cpp")
        return x @ x, torch.autograd.grad(loss, z)[0]

    product, gradient = product_and_gradient()
    exact = x.float() @ x.float()
    rounding = 1e-5 * exact.abs().max().item()  # of the sums; the product itself is bfloat16
    torch.testing.assert_close(product.float(), exact, atol=rounding, rtol=2**-8)
    for _ in range(20):
        again = product_and_gradient()
        assert torch.equal(again[0], product) and torch.equal(again[1], gradient)


def test_statistics_on_every_instruction_set(input_type: torch.dtype) -> None:
    z, groups = make_rows(258, 33, input_type), make_groups(258)
    s = reference.cosine_similarities(z)[reference.candidates(z, groups)]
    assert similarity_histogram(z, 40, groups=groups, backend="cpp").sum() == s.numel()
    torch.testing.assert_close(
        row_similarity_quantile(z, 0.9, groups=groups, backend="cpp"),
        reference.row_similarity_quantile(z, 0.9, groups=groups),
        # A number of a bfloat16 unit row may round to its other neighbour; rows that are not rounded
        # at all are off by 8e-4.
        atol=1e-6 if z.dtype is torch.float32 else 1e-4, rtol=0,
    )
    x, y = z.chunk(2)
    torch.testing.assert_close(
        alignment_uniformity(x, y, backend="cpp"), reference.alignment_uniformity(x, y)
    )


@pytest.mark.parametrize("nan", [math.nan, NAN_OF_A_GPU])
@pytest.mark.parametrize("temperature", [0.5, 0.01])
def test_nan_reaches_its_rows_on_every_instruction_set(
    input_type: torch.dtype, nan: float, temperature: float
) -> None:
    z = make_rows(130, 19, input_type)
    z[3] = nan
    groups = torch.full((130,), -1)
    groups[[3, 8]] = 1
    loss, stats = adaptive_info_nce(z, 0.2, groups=groups, temperature=temperature, reduction="none",
                                    histogram_bins=6, backend="cpp")
    assert loss.isnan().tolist() == [i != 8 for i in range(130)]
    pairs = reference.candidates(z, groups)
    pairs[3] = pairs[:, 3] = False
    assert stats.histogram.sum() == pairs.sum()


@pytest.mark.parametrize("threshold", [0.5, 2.0])
def test_exponents_near_the_end_of_one_shift_for_all_rows(threshold: float) -> None:
    """The smallest exponentials of some temperatures with one shift are no normal numbers."""
    z = torch.tensor([[1.0, 0], [0, 1], [-1, 0.01], [0.01, -1]])[[0, 0, 2, 2]] + 0.01 * make_rows(4, 2)
    for temperature in (0.0201, 0.025, 0.0251):
        assert_correct(z, torch.full((4,), threshold), "cpp", temperature=temperature)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_are_summed_in_float64(reduction: str) -> None:
    z = make_rows(8192, 8)
    rows = adaptive_info_nce(z, 2.0, reduction="none", backend="cpp").double()
    whole = adaptive_info_nce(z, 2.0, reduction=reduction, backend="cpp").double()
    torch.testing.assert_close(whole, getattr(rows, reduction)(), rtol=2e-7, atol=0)


@pytest.mark.parametrize("input_type", INSTRUCTION_SETS[::3], indirect=True)
def test_a_row_far_from_its_partner_with_thousands_of_positives(input_type: torch.dtype) -> None:
    """e^(1 / temperature) / D is e^80, and the row's printed weights are 16,000 together."""
    n = 16_000
    z = torch.zeros(n, 2)
    z[:, 0] = 1
    z[n // 2] = torch.tensor([-1.0, 0.01])
    z[5] = z[n // 2 + 5] = torch.tensor([-1.0, 0.001])

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        leaf = z.to(dtype).requires_grad_()
        loss = adaptive_info_nce(leaf, 0.0, temperature=0.025, weighting="printed", backend="cpp")
        return torch.autograd.grad(loss, leaf)[0].double()

    expected = gradient(torch.float64)
    assert (gradient(input_type) - expected).norm() < 2e-5 * expected.norm()


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AREC_CPU_ISA", "mmx")
    with pytest.raises(RuntimeError, match="AREC_CPU_ISA: expected .* got mmx"):
        adaptive_info_nce(torch.randn(4, 2), 0.0, backend="cpp")


def test_the_exponential_is_accurate_to_2_ulp(input_type: torch.dtype) -> None:
    x = torch.cat((
        torch.linspace(-126, 127, 1 << 20), torch.linspace(-1, 1, 1 << 18),
        torch.arange(-126, 127 + 3).clamp_max(127).float(),  # powers of two, exactly
    ))
    y = torch.ops.arec_kernels.cpu_exp2(x).double().numpy()
    exact = np.exp2(x.double().numpy())
    ulp = np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert (np.abs(y - exact) / ulp).max() <= 2
    assert (y[-256:] == exact[-256:]).all()


def test_the_exponential_keeps_nan_and_never_turns_up_below_its_range(input_type: torch.dtype) -> None:
    x = torch.tensor([float("nan"), float("-inf"), -1e30, -127.0, 0.0, -0.0, *[1.0] * 10])
    y = torch.ops.arec_kernels.cpu_exp2(x)
    assert y[0].isnan()
    assert (y[1:4] <= 2.0**-126).all() and (y[1:4] >= 0).all()
    assert (y[4:6] == 1).all()


def outputs(z: torch.Tensor, k: torch.Tensor, **options) -> list[torch.Tensor]:
    *rows, stats = run(adaptive_info_nce, z, k, z.dtype, backend="cpp", threshold_grad=0.1,
                       histogram_bins=30, **options)
    return [*rows, *stats, row_similarity_quantile(z, 0.8)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("temperature", [0.5, 0.01])
# 11, 3 and 2 blocks, with work for a thread each, or for eight.
@pytest.mark.parametrize(("n", "d"), [(642, 50), (130, 800), (66, 1000)])
def test_the_same_bits_for_every_number_of_threads(
    n: int, d: int, dtype: torch.dtype, temperature: float
) -> None:
    z = make_rows(n, d, dtype)
    k = clear_thresholds(z)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = outputs(z, k, temperature=temperature)
        for count in (2, 3, 8):
            torch.set_num_threads(count)
            for _ in range(5):
                for one, many in zip(alone, outputs(z, k, temperature=temperature), strict=True):
                    assert torch.equal(one, many)
    finally:
        torch.set_num_threads(threads)


def test_similarities_are_symmetric_to_the_bit(input_type: torch.dtype) -> None:
    """A similarity has the same bits for both its rows, in any tile and in every kernel.

    The threshold is a similarity of the batch, so that the last bit decides; the median of two equal
    candidates reads it off, in a tile of its own, where the two rows have either order; only in three
    parts of bfloat16 (amx, float32) it has to be that of the batch, or may show in the last bit.
    """
    in_parts = os.environ["AREC_CPU_ISA"] == "amx" and input_type is torch.float32
    z = make_rows(200, 37, input_type)
    pairs = [(0, 1), (5, 190), (63, 64), (70, 130), *((k, 50 + k) for k in range(100))]
    for i, j in pairs if in_parts else pairs + [pair[::-1] for pair in pairs]:
        of_i, *_, of_j = row_similarity_quantile(z[[i, j, i, j]], 0.5, backend="cpp")
        assert of_i == of_j
        at, below = (
            adaptive_info_nce(z, k, histogram_bins=2, backend="cpp")[1].positives[[i, j]]
            for k in (of_i, torch.nextafter(of_i, of_i.new_tensor(-2)))
        )
        assert (below - at).tolist() == [1, 1]


@pytest.mark.parametrize(("n", "d", "threshold"), [(1538, 16, 0.3), (4226, 8, math.inf)])
def test_large_blocks_of_rows(n: int, d: int, threshold: float) -> None:
    """Blocks of 4 and of 8 tiles, the last of which is short."""
    z = make_rows(n, d)
    k = clear_thresholds(z) if threshold < 1 else torch.full((n,), threshold)
    result = run(adaptive_info_nce, z, k, torch.float32, backend="cpp", temperature=0.2)
    exact = run(reference.adaptive_info_nce, z, k, torch.float64, temperature=0.2)
    torch.testing.assert_close(result.loss, exact.loss, rtol=1e-5, atol=0)
    assert (result.grad_z - exact.grad_z).norm() < 1e-5 * exact.grad_z.norm()


def assert_quantile(z: torch.Tensor, q: float) -> None:
    torch.testing.assert_close(
        row_similarity_quantile(z, q, backend="cpp"),
        reference.row_similarity_quantile(z.double(), q).float(), atol=1e-6, rtol=0,
    )  # fmt: skip


@pytest.mark.parametrize("q", [0.001, 0.5, 0.9, 0.9999])
def test_quantiles_of_many_equal_and_of_sorted_similarities(q: float) -> None:
    angle = torch.linspace(0, 3, 1300)  # similarities of a row come in order
    circle = torch.stack((angle.cos(), angle.sin()), dim=1)
    for z in (circle, circle[torch.arange(1300) % 3]):
        assert_quantile(z, q)


@pytest.mark.parametrize("few", [False, True], ids=["few-above", "few-below"])
def test_quantiles_on_either_side_of_a_gap(few: bool) -> None:
    """Every sixteenth similarity is apart from all others: above them, or below."""
    inner = torch.linspace(0.01, 1, 1024)
    apart = torch.arange(1024) % 16 == 0
    angle = torch.where(apart == few, inner + 2, inner)
    z = torch.stack((angle.cos(), angle.sin()), dim=1)
    for r in range(1, 20) if few else range(1003, 1022):
        q = (r + 0.5) / 1022
        assert_quantile(z, q)


NO_MEMORY = """
import resource, torch
from pathlib import Path
from arec_kernels import adaptive_info_nce
def loss(rows, bins):
    return adaptive_info_nce(torch.ones(rows, 64), 2.0, histogram_bins=bins, backend="cpp")[0].item()
torch.set_num_threads(2)
before = loss(2048, 10)
pages = int(Path("/proc/self/statm").read_text().split()[0])
limits = resource.getrlimit(resource.RLIMIT_AS)
for megabytes in (0, 4, 20, 20):  # 20: counters for one of two threads
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + megabytes * 2**20, limits[1]))
    try:
        loss(4096 - 64 * megabytes, 1 << 22)
    except (MemoryError, RuntimeError) as error:
        assert "memory" in str(error) or isinstance(error, MemoryError), error
resource.setrlimit(resource.RLIMIT_AS, limits)
assert loss(2048, 10) == before and loss(4096, 1 << 22) > 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_no_memory_is_an_error_and_no_end() -> None:
    done = subprocess.run([sys.executable, "-c", NO_MEMORY], capture_output=True, text=True,
                          timeout=120, check=False)
    assert done.returncode == 0, done.stderr


PEAK_MEMORY = """
import sys, torch
from pathlib import Path
from arec_kernels import adaptive_info_nce
def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024
n = int(sys.argv[1])
adaptive_info_nce(torch.randn(64, 64, requires_grad=True), 0.2, backend="cpp").backward()
z = torch.randn(n, 64, requires_grad=True)
before = resident("VmRSS")
adaptive_info_nce(z, 0.2, histogram_bins=100, backend="cpp")[0].backward()
assert torch.isfinite(z.grad).all()
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_linear_in_rows() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK_MEMORY, "16384"], capture_output=True,
                          text=True, check=True, env={**os.environ, "AREC_CPU_ISA": ""})
    assert int(done.stdout) < 50e6, "a bit for every pair would be 32 MB more"
