"""Keep what was measured, and show it in the README.

    python bench/publish.py RUN [RUN ...]   runs of arec.train -> bench/results/<folder name>.json
    python bench/publish.py                 only render the README's result sections again

The README's sections between ``<!-- results:NAME -->`` marks hold nothing typed by hand.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
README = ROOT / "README.md"
# Whole ranking, leave-one-out, NDCG@10, with where it was published.
PUBLISHED = ROOT / "bench" / "published.json"


def machine() -> str:
    """Processor model and number of cores that this process may use."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = re.search(r"model name\s*:\s*(.*)", cpuinfo.read_text())[1]
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def commit() -> str:
    """The checked-out commit, marked where the working tree differs; "unknown" in a bare copy."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, cwd=ROOT, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def publish(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    del metrics["config"]["data_dir"]  # where the files lay on that machine is nobody's business
    kept = {"machine": machine(), "published_at_commit": commit(), **metrics, "log": records}
    (RESULTS / f"{run.name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def ranking_table(dataset: str) -> str:
    """Test figures of every published run on a data set, and the literature's NDCG@10."""
    names = ("NDCG@10", "MRR@10", "Recall@10")
    lines = [
        f"| {dataset}, test | ranking | " + " | ".join(names) + " | epochs | minutes |",
        "|---|---|" + "---|" * (len(names) + 2),
    ]
    notes = set()
    for path in sorted(RESULTS.glob(f"*-{dataset}*.json")):
        result = json.loads(path.read_text())
        notes.add(result["machine"])
        for protocol in ("filtered", "unfiltered"):
            figures = result["test"][protocol]
            cells = " | ".join(f"{figures[name]:.4f}" for name in names)
            lines.append(
                f"| `{path.stem}` | {protocol} | {cells} | {result['epochs']} "
                f"| {result['minutes']:.0f} |"
            )
    for row in json.loads(PUBLISHED.read_text())[dataset]:
        lines.append(f"| {row['what']} | {row['ranking']} | {row['NDCG@10']:.4f} | | | | |")
    lines += ["", f"Measured on {'; '.join(sorted(notes))}; the full records are in `bench/results/`."]
    return "\n".join(lines)


def render() -> str:
    """The README with its result sections made anew from ``bench/results/``."""
    sections = {dataset: ranking_table(dataset) for dataset in json.loads(PUBLISHED.read_text())}
    for path in RESULTS.glob("*.md"):
        sections[path.stem] = path.read_text().strip()

    def fill(match: re.Match) -> str:
        body = sections.get(match[1], "")
        return f"<!-- results:{match[1]} -->\n{body}\n<!-- /results:{match[1]} -->"

    pattern = r"<!-- results:([\w-]+) -->\n.*?<!-- /results:\1 -->"
    return re.sub(pattern, fill, README.read_text(), flags=re.DOTALL)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        publish(Path(argument))
    README.write_text(render())
