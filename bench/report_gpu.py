"""The table and the plot of what `bench/test_gpu_kernels.py` measured: `python bench/report_gpu.py JSON`.

JSON is bench/results/gpu-CARD.json; .md and .png are written beside it. The benchmark does the same when
it ends. No GPU is needed.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from matplotlib.figure import Figure

from arec.tables import markdown_table

D = 64  # of the table and the plot; the others are in the file


def formats(collected: dict) -> list[str]:
    """Those measured at width D, the fastest first."""
    found = {r["format"] for r in collected["records"] if r["d"] == D}
    return sorted(found, key=collected["flop_per_second"].get, reverse=True)


def contenders(collected: dict, form: str) -> dict[str, dict[int, dict]]:
    """Records of one format by name and N, ours first."""
    by_name = {}
    for record in collected["records"]:
        if (record["format"], record["d"]) == (form, D):
            by_name.setdefault(record["name"], {})[record["n"]] = record
    return dict(sorted(by_name.items(), key=lambda item: (not item[0].startswith("ours"), item[0])))


def table(collected: dict, form: str) -> str:
    """One line a contender, one column an N."""
    runs = contenders(collected, form)
    sizes = sorted({n for records in runs.values() for n in records})
    lines = []
    ours = [runs[name] for name in ("ours, Triton", "ours, CUDA C++") if name in runs]
    best = {n: min((r[n]["ms"] for r in ours if n in r), default=math.nan) for n in sizes}
    for name, records in runs.items():
        cells = []
        for n in sizes:
            if record := records.get(n):
                limit = record.get("fraction_of_unshared_limit")
                beside = f"× {record['ms'] / best[n]:.1f}" if limit is None else f"{limit:.0%}"
                cells.append(f"{record['ms']:.3g} ({beside})")
            else:
                cells.append("–")
        lines.append([name, *cells])
    for name, records in runs.items():
        if any(record["extra_bytes"] is not None for record in records.values()):
            cells = [
                f"{records[n]['extra_bytes'] / 1e6:,.1f}" if n in records else "–" for n in sizes
            ]
            lines.append([f"MB: {name}", *cells])
    return "\n".join(markdown_table([f"{form}, D = {D}", *(f"{n:,}" for n in sizes)], lines))


def text(collected: dict, name: str) -> str:
    """The page section."""
    matrix = ", ".join(
        f"{rate / 1e12:.0f} in {form}" for form, rate in collected["flop_per_second"].items()
    )
    explanation = (
        "Milliseconds of forward + backward by N, launches from Python included but for “CUDA graph”. "
        "Beside ours the share of the limit: the longer of 6·N²·D FLOP and 2·N² exponentials, for each "
        "pair is computed for both of its rows; beside the others the time as a multiple of the faster one "
        "of our two (without a graph). “–” was not measured, or does not fit into memory. The limits "
        f"are {matrix} TFLOP/s and {collected['exponentials_per_second'] / 1e12:.2f}·10¹² exponentials "
        "a second, measured in the same run. “MB” is what a step adds at its peak, gradient included."
    )
    source = (
        f"{collected['card']}, torch {collected['torch']}, triton {collected['triton']}, commit "
        f"{collected['commit']}; every record is in `bench/results/{name}.json`."
    )
    tables = [table(collected, form) for form in formats(collected)]
    image = f"![time over N](bench/results/{name}.png)"
    return "\n\n".join([*tables, explanation, image, source]) + "\n"


def plot(collected: dict, path: Path) -> None:
    """Time over N, one line a contender, one part a format."""
    shown = formats(collected)
    figure = Figure(figsize=(6 * len(shown), 4.5), layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)
    for axis, form in zip(axes[0], shown, strict=True):
        for name, records in contenders(collected, form).items():
            points = sorted((n, record["ms"]) for n, record in records.items())
            style = "-" if name.startswith("ours") else "--"
            axis.loglog(*zip(*points, strict=True), style, marker="o", label=name)
        axis.set(title=f"{form}, D = {D}, {collected['card']}", xlabel="rows N")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small", loc="lower right")
    axes[0][0].set_ylabel("forward + backward, ms")
    figure.savefig(path, dpi=110)


def write(path: Path) -> None:
    """Table and plot beside the JSON at `path`."""
    collected = json.loads(path.read_text())
    path.with_suffix(".md").write_text(text(collected, path.stem))
    plot(collected, path.with_suffix(".png"))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
