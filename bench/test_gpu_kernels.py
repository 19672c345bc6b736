"""Forward + backward on a GPU, against eager, torch.compile and published losses.

    pytest bench/test_gpu_kernels.py        -> bench/results/gpu-<card>.json, .md and .png

Times are medians by CUDA events over inputs that take turns, as many as fill the L2 cache twice, but
at most 100: small ones stay in it.
pytest-benchmark has no part in it: it reads the host's clock. A case that does not fit into memory,
or whose package is missing, is skipped. The records are written one by one, and a later session (say,
`-k "ours and bf16"`) at the same commit adds to them, so that the whole may run in parts. Every
record of ours holds the fraction of two limits, from matrix and exponential rates measured in the
same run: that of the schedule the kernels run (unshared: each pair computed for both its rows,
6 N^2 D FLOP and 2 N^2 exponentials) and that of the least possible work (shared: 4 N^2 D and N^2).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import report_gpu
import torch
from provenance import RESULTS, card_name, commit, keep
from rivals import TEMPERATURE, lean, lean_compiled, metric_learning, ours_ntxent
from torch import Tensor
from torch.nn.functional import normalize

from arec_kernels import adaptive_info_nce
from arec_kernels.registration import IMPLEMENTED

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)
triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = pytest.importorskip("triton.language")

SIZES = (512, 2048, 8192, 32768, 65536, 262144)
WIDTHS = (64, 128, 256)
# Name: type of z, and torch's setting for products of float32.
FORMATS = {
    "fp32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "bf16": (torch.bfloat16, "highest"),
}
MIN_SECONDS = 0.2
MAX_SECONDS = 3.0  # of measuring, after which fewer than ten steps have to do
EXPONENTIALS = 256  # a thread of the rate measurement


def ours(backend: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, k: adaptive_info_nce(z, k, temperature=TEMPERATURE, backend=backend)


def inf_cl(z: Tensor, k: Tensor) -> Tensor:
    """N x N logits with each row's partner as its label; nothing leaves out self."""
    flash = pytest.importorskip("inf_cl")
    unit = normalize(z.float())
    labels = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return flash.cal_flash_loss(
        unit, unit, labels=labels, scale=1 / TEMPERATURE, head_dim=z.shape[1]
    ).mean()


LOSSES = {
    "ours, Triton": ours("triton"),
    "ours, Triton, CUDA graph": ours("triton"),
    "ours, Triton, NT-Xent": partial(ours_ntxent, backend="triton"),
    "ours, CUDA C++": ours("cuda"),
    "ours, CUDA C++, CUDA graph": ours("cuda"),
    "eager, lean": lean,
    "torch.compile, lean": lean_compiled,
    "pytorch-metric-learning, NT-Xent": metric_learning,
    "inf-cl, no mask": inf_cl,
}
# Those that store N x N matrices, two of float32 at the very least.
QUADRATIC = ("eager, lean", "torch.compile, lean", "pytorch-metric-learning, NT-Xent")
# Those with formats of their own: inf-cl turns its input into float32 and multiplies in TF32; in the CUDA
# C++ kernels float32 has one precision.
ONLY_FORMATS = {"inf-cl": ("tf32",), "ours, CUDA C++": ("fp32", "bf16")}


def median_ms(steps: list[Callable[[], object]]) -> float:
    """Median milliseconds of a step; the steps, one for each input, take turns."""
    for step in steps[:3]:
        step()
    torch.cuda.synchronize()
    times: list[float] = []
    while sum(times) < 1e3 * (MIN_SECONDS if len(times) >= 10 else MAX_SECONDS):
        events = []
        for step in steps[:100]:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        times += [start.elapsed_time(end) for start, end in events]
    return statistics.median(times)


def make_steps(loss: Callable, n: int, d: int, dtype: torch.dtype, graphed: bool) -> list[Callable]:
    """One forward + backward for each of enough inputs to fill the L2 cache twice."""
    size = n * d * torch.finfo(dtype).bits // 8
    copies = min(100, 1 + 2 * torch.cuda.get_device_properties(0).L2_cache_size // size)
    k = torch.full((n,), 3 / math.sqrt(d), device="cuda")  # above about 1 pair in 1,000
    steps = []
    for seed in range(copies):
        generator = torch.Generator("cuda").manual_seed(seed)
        z = torch.randn(n, d, device="cuda", generator=generator).to(dtype).requires_grad_()

        def step(z: Tensor = z) -> None:
            z.grad = None
            loss(z, k).backward()

        steps.append(capture(step) if graphed else step)
    return steps


def capture(step: Callable) -> Callable:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@triton.jit
def exponentials_kernel(x_ptr, BLOCK: tl.constexpr, REPEATS: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    for _ in range(REPEATS):
        x = tl.exp2(-x)
    tl.store(x_ptr + offsets, x)


def exponential_rate() -> float:
    """Exponentials a second."""
    x = torch.rand(1 << 24, device="cuda")
    ms = median_ms([lambda: exponentials_kernel[(len(x) // 1024,)](x, 1024, EXPONENTIALS)])
    return len(x) * EXPONENTIALS / ms * 1e3


def matrix_rate(dtype: torch.dtype, precision: str) -> float:
    """FLOP a second of a large product."""
    torch.set_float32_matmul_precision(precision)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * 8192**3 / median_ms([lambda: a @ b]) * 1e3


@dataclass
class Report:
    name: str
    collected: dict

    def add(self, record: dict) -> None:
        """Replaces an earlier record of the same case, and writes the file."""
        case = ("name", "format", "n", "d")
        records = [
            r for r in self.collected["records"] if any(r[key] != record[key] for key in case)
        ]
        self.collected["records"] = [*records, record]
        keep(self.name, self.collected)


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    """What is collected; table and plot are made when the session ends."""
    card = torch.cuda.get_device_name()
    name = f"gpu-{card_name(card)}"
    path = RESULTS / f"{name}.json"
    collected = {
        "card": card,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit(),
        "temperature": TEMPERATURE,
        "schedule": "unshared",
        "exponentials_per_second": exponential_rate(),
        "flop_per_second": {name: matrix_rate(*how) for name, how in FORMATS.items()},
        "records": [],
    }
    if path.exists():
        earlier = json.loads(path.read_text())
        if earlier["commit"] == collected["commit"] != "unknown":
            collected["records"] = earlier["records"]
    yield Report(name, collected)
    if report_gpu.formats(collected):  # the session may have measured other widths only, or nothing
        report_gpu.write(path)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", LOSSES)
def test_forward_and_backward(report: Report, name: str, form: str, d: int, n: int) -> None:
    for start, forms in ONLY_FORMATS.items():
        if name.startswith(start) and form not in forms:
            pytest.skip(f"{start} has no {form}")
    if "CUDA C++" in name and ("cuda", "cuda") not in IMPLEMENTED:
        pytest.skip("built without the CUDA C++ kernels")
    dtype, precision = FORMATS[form]
    torch.set_float32_matmul_precision(precision)
    torch.cuda.empty_cache()
    if name in QUADRATIC and 8 * n**2 > torch.cuda.mem_get_info()[0]:
        pytest.skip("does not fit into memory")
    torch.compiler.reset()  # beyond eight shapes it would run eagerly without a word
    graphed = "CUDA graph" in name  # whose memory is the graph's own, and taken at its capture
    try:
        steps = make_steps(LOSSES[name], n, d, dtype, graphed)
        steps[0]()
        torch.cuda.synchronize()
        gradient_bytes = n * d * torch.finfo(dtype).bits // 8  # of that step, which the next frees
        before = torch.cuda.memory_allocated() - gradient_bytes
        torch.cuda.reset_peak_memory_stats()
        steps[0]()
        extra = None if graphed else torch.cuda.max_memory_allocated() - before
        ms = median_ms(steps)
    except torch.OutOfMemoryError:
        pytest.skip("does not fit into memory")
    except ImportError as error:
        pytest.skip(str(error))
    record = {"name": name, "format": form, "n": n, "d": d, "ms": ms, "extra_bytes": extra}
    if name.startswith("ours"):
        rates = report.collected
        flops = rates["flop_per_second"][form]
        if name.startswith("ours, CUDA") and form == "fp32":
            flops = rates["flop_per_second"]["tf32"] / 3  # three such products make one
        for schedule, flop, exponentials in (("unshared", 6, 2), ("shared", 4, 1)):
            seconds = max(
                flop * n**2 * d / flops,
                exponentials * n**2 / rates["exponentials_per_second"],
            )
            record[f"fraction_of_{schedule}_limit"] = 1e3 * seconds / ms
    report.add(record)
    print(record)
