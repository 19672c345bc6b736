"""Keep what was measured, and show it in the README and in docs/.

    python bench/publish.py RUN [RUN ...]   runs of arec.train, on the machine where they were trained
                                            -> bench/results/<folder name>.json
    python bench/publish.py                 only render the pages' result sections again

Their sections between ``<!-- results:NAME -->`` marks hold nothing typed by hand. NAME is that of a
Markdown file in bench/results/, "curve-" and the name of a published run, "simthres", or part of the
names of published runs.
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
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PUBLISHED = ROOT / "arec" / "published.json"


def machine() -> str:
    """Processor model and number of cores that this process may use."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.*)", cpuinfo.read_text() if cpuinfo.exists() else "")
    model = named[1] if named else platform.processor() or platform.machine()
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
    for record in records:
        record.pop("similarity_histogram", None)  # long; `arec.report` draws it
    del metrics["config"]["data_dir"]  # where the files lay on that machine is nobody's business
    kept = {"machine": machine(), "published_at_commit": commit(), **metrics, "log": records}
    (RESULTS / f"{run.name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def published_rows(dataset: str) -> list[dict]:
    """NDCG@10 in the literature: what, in which ranking."""
    published = json.loads(PUBLISHED.read_text())
    if dataset not in published["table1"]:
        return []
    paper = published["table1"][dataset]
    rows = [
        {
            "what": f"{name}, Table 1 (Jeon et al., 2023)",
            "ranking": "unfiltered",
            "NDCG@10": paper[name.lower()]["NDCG@10"],
        }
        for name in ("AdaptiveRec", "DuoRec")
    ]
    return rows + published["elsewhere"][dataset]


def ranking_table(part: str) -> str:
    """Test figures of the published runs with that part in their names.

    Where it is a data set's name, with the literature's NDCG@10.
    """
    names = ("NDCG@10", "MRR@10", "Recall@10")
    lines = [
        f"| {part}, test | ranking | " + " | ".join(names) + " | epochs | minutes |",
        "|---|---|" + "---|" * (len(names) + 2),
    ]
    notes = set()
    for path in sorted(RESULTS.glob(f"*-{part}*.json")):
        result = json.loads(path.read_text())
        threads = result["threads"]
        notes.add(f"{result['machine']}, {threads} thread{'s' * (threads > 1)} a run")
        for protocol in ("filtered", "unfiltered"):
            figures = result["test"][protocol]
            cells = " | ".join(f"{figures[name]:.4f}" for name in names)
            lines.append(
                f"| `{path.stem}` | {protocol} | {cells} | {result['epochs']} "
                f"| {result['minutes']:.0f} |"
            )
    for row in published_rows(part):
        lines.append(f"| {row['what']} | {row['ranking']} | {row['NDCG@10']:.4f} | | | | |")
    lines += ["", f"Measured on {'; '.join(sorted(notes))}; the full records are in `bench/results/`."]
    return "\n".join(lines)


def curve_table(name: str) -> str:
    """Validation figures of a published run by epoch."""
    result = json.loads((RESULTS / f"{name}.json").read_text())
    lines = ["| epoch | training loss | NDCG@10 filtered | NDCG@10 unfiltered |", "|---|---|---|---|"]
    for record in result["log"]:
        filtered, unfiltered = (
            record["valid"][protocol]["NDCG@10"] for protocol in ("filtered", "unfiltered")
        )
        lines.append(
            f"| {record['epoch']} | {record['loss']:.3f} | {filtered:.4f} | {unfiltered:.4f} |"
        )
    return "\n".join([*lines, "", f"Validation figures of `{name}`."])


def simthres_table() -> str:
    """What k learned in the published runs that learn it."""
    lines = [
        "| run | gradient to k | k | its spread over rows | spread of the rows' quantiles | correlation |",
        "|---|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        if k := result.get("simthres"):
            width = result["config"]["threshold_grad"]
            correlation = "none" if k["correlation"] is None else f"{k['correlation']:.2f}"
            lines.append(
                f"| `{path.stem}` | {'none' if width is None else f'h = {width}'} | {k['mean']:.3f} "
                f"| {k['std']:.4f} | {k['quantile_std']:.4f} | {correlation} |"
            )
    return "\n".join(lines)


def render(page: Path) -> str:
    """A page with its result sections made anew from ``bench/results/``."""

    def fill(match: re.Match) -> str:
        file = RESULTS / f"{match[1]}.md"
        if file.exists():
            body = file.read_text().strip()
        elif match[1].startswith("curve-"):
            body = curve_table(match[1].removeprefix("curve-"))
        elif match[1] == "simthres":
            body = simthres_table()
        else:
            body = ranking_table(match[1])
        if page.parent != ROOT:
            body = body.replace("](bench/", "](../bench/")
        return f"<!-- results:{match[1]} -->\n{body}\n<!-- /results:{match[1]} -->"

    pattern = r"<!-- results:([\w-]+) -->\n.*?<!-- /results:\1 -->"
    return re.sub(pattern, fill, page.read_text(), flags=re.DOTALL)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        publish(Path(argument))
    for page in PAGES:
        page.write_text(render(page))
