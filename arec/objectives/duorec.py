"""DuoRec: contrast of dropout views and sequences with the same target (Qiu et al., 2022)."""

from __future__ import annotations

from arec.objectives.contrastive import ContrastiveObjective


class DuoRec(ContrastiveObjective):
    """NT-Xent on the pairs "un", "su", "us" or "us_x"."""
