"""The C++ kernels against eager and compiled PyTorch and other libraries, over sizes.

The multiples in the table of `pytest bench/ --benchmark-only` are those of each size; `report_cpu.py`
keeps them.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
import torch
from rivals import RIVALS, why_absent
from timing import call, measure, problem, total_memory

from arec_kernels import adaptive_info_nce, row_similarity_quantile
from arec_kernels.reference import cosine_similarities

SIZES = (64, 512, 1024, 2048, 4096, 8192)
WIDTHS = (64, 128, 256)
why_absent = cache(why_absent)


# A case takes seconds. What PyTorch makes of one mode alone is compared where the report's table is.
CASES = [
    (n, d, backward, rival)
    for n, d, backward, rival in product(SIZES, WIDTHS, (False, True), RIVALS)
    if not rival.endswith("lean") or (d == 64 and backward)
]


@pytest.mark.parametrize(("n", "d", "backward", "rival"), CASES)
def test_loss(
    benchmark, peak_flops, memory, n: int, d: int, backward: bool, rival: str
) -> None:
    loss, needed_bytes, mode, _ = RIVALS[rival]
    if needed_bytes(n, d) > total_memory() / 2:
        pytest.skip("out of memory")
    if reason := why_absent(RIVALS[rival]):
        pytest.skip(reason)
    passes = "forward+backward" if backward else "forward"
    benchmark.group = f"{mode} {passes} N={n:5d} D={d:3d}"
    torch.compiler.reset()  # after a few shapes torch.compile would fall back to eager
    function = call(loss, *problem(n, d), backward)
    measure(benchmark, function)
    # The least work, with each product serving both triangles of the similarities.
    flop = (4 if backward else 1) * n * n * d
    benchmark.extra_info |= {
        "n": n, "d": d, "passes": passes, "rival": rival, "mode": mode,
        "peak_bytes": memory.peak_bytes(rival, n, d, backward), "peak_flops": peak_flops,
        "fraction": flop / benchmark.stats.stats.min / peak_flops,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_bfloat16(benchmark, dtype: torch.dtype) -> None:
    benchmark.group = "bfloat16 and float32, forward+backward N=4096 D=64"
    function = call(RIVALS["ours"].loss, *problem(4096, 64, dtype), True)
    measure(benchmark, function)


@pytest.mark.parametrize("bins", [None, 200, 2000])
def test_histogram(benchmark, bins: int | None) -> None:
    benchmark.group = "with and without the histogram, forward+backward N=4096 D=64"

    def loss(z: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        out = adaptive_info_nce(z, k, temperature=0.1, histogram_bins=bins, backend="cpp")
        return out if bins is None else out[0]

    measure(benchmark, call(loss, *problem(4096, 64), True))


@pytest.mark.parametrize("by", ["row_similarity_quantile", "torch.quantile", "torch.topk"])
def test_quantile(benchmark, by: str) -> None:
    benchmark.group = "quantile of every row, N=4096 D=64"
    z = problem(4096, 64)[0].detach()
    if by == "torch.quantile":
        # torch.quantile refuses 2^24 numbers at once, so it takes the rows in two halves.
        measure(benchmark, lambda: [
            torch.quantile(rows, 0.9, dim=1) for rows in cosine_similarities(z).chunk(2)
        ])
    elif by == "torch.topk":
        tenth = len(z) - int(0.9 * len(z))
        measure(benchmark, lambda: cosine_similarities(z).topk(tenth, dim=1, sorted=False).values.amin(dim=1))
    else:
        measure(benchmark, lambda: row_similarity_quantile(z, 0.9, backend="cpp"))
