"""``python -m arec``: the programs, which are modules of their own."""

import sys

PROGRAMS = {
    "train": "train a method on a data set, and rank",
    "evaluate": "the test figures of a run again",
    "recommend": "what users would choose next, as CSV",
    "report": "the figures of the paper, from the logs of runs",
    "reproduce": "its tables and figures, with all the runs they need",
}

lines = [f"  python -m arec.{name:10}  {what}" for name, what in PROGRAMS.items()]
print("expected one of, each with --help:", *lines, sep="\n", file=sys.stderr)
sys.exit(2)
