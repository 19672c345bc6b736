"""Measures the CPU kernels and keeps the figures: `python bench/report_cpu.py`.

Writes bench/results/cpu-MAKER-MODEL.json (every figure), .md (the table) and .png (the plot), named
for the processor. Run it on a machine that does nothing else, for half an hour: where other machines
share the processor, a benchmark is slower for seconds at a time, so all of them run three times, and of
each, ours or a rival's, the fastest run counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

import torch
from matplotlib.figure import Figure
from provenance import RESULTS, commit, keep, machine, processor
from rivals import RIVALS, why_absent

from arec.tables import markdown_table

BENCH = Path(__file__).parent
D, PASS = 64, "forward+backward"  # of the table and the plot


def fastest(runs: list[list[dict]]) -> list[dict]:
    """Of each benchmark the fastest run, as a fraction of the highest limit."""
    rows = [min(same, key=lambda row: row["seconds"]) for same in zip(*runs, strict=True)]
    limits = [row["peak_flops"] for run in runs for row in run if "peak_flops" in row]
    for row in rows:
        if "peak_flops" in row:
            row["fraction"] *= row["peak_flops"] / max(limits)
            row["peak_flops"] = max(limits)
    return rows


def run() -> list[dict]:
    """The benchmarks once, each as its figures and what it says about itself."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "benchmark.json"
        subprocess.run(
            [sys.executable, "-m", "pytest", str(BENCH / "test_cpu_kernels.py"), "-q", "-p",
             "no:cacheprovider", "--benchmark-only", f"--benchmark-json={out}"],
            check=True,
        )
        benchmarks = json.loads(out.read_text())["benchmarks"]
    return [
        {"name": b["name"], "group": b["group"], "seconds": b["stats"]["min"],
         "median_seconds": b["stats"]["median"], "rounds": b["stats"]["rounds"],
         **b["extra_info"]}
        for b in benchmarks
    ]


def megabytes(row: dict) -> str:
    return "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.1f}"


def table(rows: list[dict], absent: Collection[str]) -> str:
    """One line a size: our time, share of the limit and memory; each rival's time as a multiple."""
    rivals = {
        mode: [name for name, rival in RIVALS.items() if rival.mode == mode and name not in absent]
        for mode in ("adaptive", "ntxent")
    }
    cells = {(r["n"], r["rival"]): r for r in rows if r.get("d") == D and r["passes"] == PASS}
    names = [name for mode in rivals.values() for name in mode[1:]]
    head = [f"N (D = {D}, {PASS})", "ours, ms", "of the limit", "MB",
            *(f"× {name} (MB)" for name in names)]
    lines = []
    for n in sorted({n for n, _ in cells}):
        ours = cells[n, "ours"]
        line = [f"{n:,}", f"{ours['seconds'] * 1e3:.3g}", f"{ours['fraction']:.2f}",
                megabytes(ours)]
        for first, *others in rivals.values():
            for name in others:
                if rival := cells.get((n, name)):
                    ratio = rival["seconds"] / cells[n, first]["seconds"]
                    line.append(f"{ratio:.1f} ({megabytes(rival)})")
                else:
                    line.append("out of memory")
        lines.append(line)
    return "\n".join(markdown_table(head, lines))


def plot(rows: list[dict], path: Path) -> None:
    """Time over N, one line a rival, D = 64, forward and backward."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, rival in RIVALS.items():
        points = sorted(
            (r["n"], r["seconds"] * 1e3) for r in rows
            if r.get("rival") == name and r["d"] == D and r["passes"] == PASS
        )
        if points:
            axes.plot(*zip(*points), marker="o", label=name,
                      linestyle="-" if rival.mode == "adaptive" else "--")
    axes.set(yscale="log", xlabel="rows N", ylabel="forward + backward, ms",
             title=f"D = 64, float32, {machine()}")
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="of everything, ten minutes each")
    runs = parser.parse_args().runs
    rows = fastest([run() for _ in range(runs)])
    about = {"machine": machine(), "commit": commit(), "torch": torch.__version__,
             "threads": torch.get_num_threads()}
    peak = next(r["peak_flops"] for r in rows if "peak_flops" in r)
    def ratio(slow: str, fast: str) -> float:
        seconds = {r["name"]: r["seconds"] for r in rows}
        return seconds[slow] / seconds[fast]

    bfloat16 = ratio("test_bfloat16[float32]", "test_bfloat16[bfloat16]")
    histogram = [
        f"{ratio(f'test_histogram[{bins}]', 'test_histogram[None]') - 1:.0%}" for bins in (200, 2000)
    ]
    quantile, topk = (
        ratio(f"test_quantile[torch.{by}]", "test_quantile[row_similarity_quantile]") for by in ("quantile", "topk")
    )
    absent = {name: why for name, rival in RIVALS.items() if (why := why_absent(rival))}
    without = "".join(f"Without {name}: {why}. " for name, why in absent.items())
    often = f"Of {runs} runs of everything, the fastest of each." if runs > 1 else "One run of everything."
    explanation = (
        "“×” is that rival's time over ours: PyTorch in the default mode with a threshold for each row "
        "(the oracle, `arec_kernels.reference`, which has all modes; lean: written for this one alone, in "
        "`bench/rivals.py`), the libraries against our NT-Xent mode. “Out of memory” is not run, since it would "
        "take more than half of the machine's: pytorch-metric-learning holds every positive pair against every "
        f"negative one, N³ numbers. {without}"
        f"The limit is 4·N²·D FLOP at the {peak / 1e9:.0f} GFLOP/s that this machine's "
        f"{about['threads']} threads reach with multiply-adds from registers in the same run; where "
        "there is a unit for tiles (AMX), which is faster, products run on that, and 1 is no bound. "
        f"{often} A time is the least of its rounds, of which whoever is faster has more; the record has their "
        "medians. "
        "“MB” is what one call adds to the memory of a fresh process at its peak, inputs aside. "
        f"At N = 4,096 bfloat16 input is {bfloat16:.2f} times as fast as float32, a histogram of "
        f"200 bins adds {histogram[0]} and one of 2,000 {histogram[1]}, and "
        f"`row_similarity_quantile` is {quantile:.1f} times as fast as `torch.quantile` over the "
        f"matrix and {topk:.1f} times as fast as `torch.topk`."
    )
    name = f"cpu-{processor()}"
    source = (
        f"{about['machine']}, torch {about['torch']}, commit {about['commit']}; all sizes and "
        f"both passes are in `bench/results/{name}.json`."
    )
    image = f"![time over N](bench/results/{name}.png)"
    text = "\n\n".join([table(rows, absent), explanation, image, source])
    plot(rows, RESULTS / f"{name}.png")
    keep(name, {**about, "benchmarks": rows}, text)


if __name__ == "__main__":
    main()
