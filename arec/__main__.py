"""``python -m arec``: names the programs, which are modules of their own."""

from __future__ import annotations

import sys

from arec import __version__

PROGRAMS = """\
python -m arec.train       train a method on a data set, and rank
python -m arec.evaluate    the test figures of a run again
python -m arec.recommend   what users would choose next, as CSV
python -m arec.report      a table of runs, and the figures of the paper from their logs
python -m arec.reproduce   its tables and figures, with all the runs they need
each with --help and --version
"""


def main() -> None:
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(PROGRAMS, end="")
        return
    if sys.argv[1:] == ["--version"]:
        print(f"arec {__version__}")
        return
    print("python -m arec: error: expected one of", PROGRAMS, sep="\n", end="", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
