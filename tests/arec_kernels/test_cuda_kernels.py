"""The CUDA kernels where they differ from other backends: widths, splits, what nvcc makes of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import cuda_emulation
import pytest
import torch
from available import CUDA_ON_CARD, needs_cuda, ready
from correctness import MARGINS, assert_correct, clear_thresholds, make_groups, make_rows, run

from arec_kernels import adaptive_info_nce, reference, row_similarity_quantile

SOURCES = cuda_emulation.SOURCES
NVCC = shutil.which("nvcc")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def cuda() -> str:
    """The device of tensors for the backend, which is loaded."""
    ready("cuda")
    return "cuda" if CUDA_ON_CARD else "cpu"


@needs_cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "d"),
    [
        (270, 64),  # a width of its own, rows past two blocks
        (140, 65),  # the next
        (140, 129),  # the widest of half precision, the first in chunks of float32
        (140, 257),  # in chunks
        (6, 520),
    ],
)
@pytest.mark.parametrize("general", [False, True])
def test_widths(cuda: str, dtype: torch.dtype, n: int, d: int, general: bool) -> None:
    z = make_rows(n, d, dtype, device=cuda)
    options = {"temperature": 0.3}
    if general:
        options |= {"groups": make_groups(n, cuda), "threshold_grad": 0.2, "histogram_bins": 7}
    k = clear_thresholds(z, options.get("groups"))
    assert_correct(z, k, "cuda", **options)


@needs_cuda
@pytest.mark.parametrize("bins", [4096, 4097])  # in shared memory, and the first in global memory
def test_histograms_of_many_bins(cuda: str, bins: int) -> None:
    z = make_rows(150, 20, device=cuda)
    assert_correct(z, clear_thresholds(z), "cuda", histogram_bins=bins)


@needs_cuda
def test_thresholds_below_every_cosine(cuda: str) -> None:
    """Everything is above them but what is no candidate."""
    z = make_rows(140, 20, device=cuda)
    k = torch.full((140,), -torch.inf, device=cuda)
    result = assert_correct(z, k, "cuda", histogram_bins=1)
    assert result.stats.positives.eq(138).all()


@needs_cuda
def test_nothing_is_above_a_threshold_of_nan(cuda: str) -> None:
    z = make_rows(40, 5, device=cuda)
    k = clear_thresholds(z)
    k[3] = torch.nan
    loss, stats = adaptive_info_nce(z, k, reduction="none", histogram_bins=1, backend="cuda")
    assert loss.isnan().nonzero().tolist() == [[3]]
    assert stats.positives[3] == 0


@needs_cuda
def test_sums_that_are_cut_off_do_not_add_up(cuda: str) -> None:
    """Tensor cores cut their sums off towards zero: with entries of one sign, a little for each tile."""
    z = torch.randn(1024, 64, generator=torch.Generator().manual_seed(0)).add(1).to(cuda)
    k = torch.full((1024,), 2.0, device=cuda)
    exact = run(reference.adaptive_info_nce, z, k, torch.float64).grad_z
    rounded = run(reference.adaptive_info_nce, z, k, torch.float32).grad_z
    result = run(adaptive_info_nce, z, k, torch.float32, backend="cuda").grad_z
    assert (result - exact).norm() <= 2 * (rounded - exact).norm()


@needs_cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantiles_of_several_blocks(cuda: str, dtype: torch.dtype) -> None:
    z = make_rows(270, 40, dtype, device=cuda)
    k = row_similarity_quantile(z, 0.9, backend="cuda")
    expected = row_similarity_quantile(z, 0.9, backend="reference")
    torch.testing.assert_close(k, expected, rtol=0, atol=MARGINS[dtype])


@pytest.mark.skipif(not NVCC, reason="needs nvcc")
@pytest.mark.parametrize(
    ("source", "architecture"),
    [("kernels_bf16", "80"), ("kernels_bf16", "90a"), ("kernels_fp16", "90a"),
     ("kernels_fp32", "80"), ("ops", "90a")],
)
def test_compiles_without_spills(source: str, architecture: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [NVCC, *cuda_emulation.FLAGS, "-O3", "-DUSE_CUDA", f"-I{SOURCES}", "-Xcompiler", "-fPIC",
         "-Xptxas", "-v", "-c",
         "-gencode", f"arch=compute_{architecture},code=sm_{architecture}",
         str(SOURCES / f"{source}.cu"), "-o", str(tmp_path / "kernels.o")],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr
    spills = re.findall(
        r"entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr, re.DOTALL
    )
    main = {name: int(a) + int(b) for name, a, b in spills if re.search("(for|back)ward_kernel", name)}
    assert len(main) == (0 if source == "ops" else 12 if source == "kernels_fp32" else 16)
    assert not any(main.values()), main
