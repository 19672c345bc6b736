"""On what machine, and at which commit, something was measured, and where it is kept."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from arec.files import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def keep(name: str, record: dict[str, Any], text: str | None = None) -> None:
    """Into bench/results/: NAME.json, in which an item of a list is a line, and NAME.md with the text."""
    write_text(RESULTS / f"{name}.json", _json(record) + "\n")
    if text is not None:
        write_text(RESULTS / f"{name}.md", text + "\n")


def _json(value: Any, indent: str = "") -> str:
    further = indent + " "
    if isinstance(value, dict) and any(isinstance(item, (dict, list)) for item in value.values()):
        items = [f"{further}{json.dumps(key)}: {_json(item, further)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return "[\n" + ",\n".join(further + json.dumps(item) for item in value) + f"\n{indent}]"
    return json.dumps(value)


def machine() -> str:
    """Processor model and number of cores that this process may use.

    Processors of one name ("AMD EPYC") can be generations apart: x86 has numbers that tell them.
    """
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE))
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def processor() -> str:
    """The first two words of the model's name and its numbers, fit for a file's: "amd-epyc-25-17"."""
    name, _, rest = re.sub(r"\((r|tm)\)", "", machine().lower()).partition(" (family ")
    return "-".join(re.findall("[a-z]+", name)[:2] + re.findall(r"\d+", rest.partition(")")[0]))


def card_name(name: str) -> str:
    """A card's name, fit for a file's: "nvidia-h100-80gb-hbm3"."""
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def commit() -> str:
    """The checked-out commit, marked where the code differs; what measuring writes is none.

    AREC_COMMIT says it for a copy whose .git is not its own or missing ("unknown").
    """
    if given := os.environ.get("AREC_COMMIT"):
        return given
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results", ":!*.md")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.strip()
