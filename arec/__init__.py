"""Sequential recommendation with adaptive contrastive learning (AdaptiveRec) and its baselines.

The programs are `python -m arec.train`, `arec.evaluate`, `arec.recommend`, `arec.report` and
`arec.reproduce`; data flows `arec.data` -> `arec.models` -> `arec.objectives` -> `arec.trainer` ->
`arec.ranking`.
"""

import os
import sys
from types import TracebackType

__version__ = "0.1.0"

# Where the system gives pages of 2 MB to those who ask, PyTorch asks only if told so before its first
# tensor. With 100,000s of items a step makes several gradients of the size of their table anew, and
# mapping these by pages of 4 kB would take a good part of it.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# How long a thread of gcc's OpenMP waits for the others before it sleeps, which is to be said before
# PyTorch is imported. By default it is ten times as long: where something else keeps a core busy,
# threads then wait for one that has none, and training is many times slower. Shorter than this, a
# machine of its own has them woken too often.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")


def _without_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.__excepthook__(kind, error, trace)


# Until PyTorch is imported, which takes seconds, `arec.cli.run` is not there to catch Ctrl-C.
if sys.argv[:1] == ["-m"]:  # what Python has there while it looks for the program in the package
    sys.excepthook = _without_traceback
