"""On what machine, and at which commit, something was measured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


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
    """The checked-out commit, marked where the working tree differs.

    AREC_COMMIT says it for a copy whose .git is not its own or missing ("unknown").
    """
    if given := os.environ.get("AREC_COMMIT"):
        return given
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, cwd=ROOT, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
