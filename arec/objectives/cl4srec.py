"""CL4SRec: contrast of augmented views of a sequence (Xie et al., 2022)."""

from __future__ import annotations

from arec.objectives.contrastive import ContrastiveObjective


class CL4SRec(ContrastiveObjective):
    """NT-Xent on the pairs "cl4srec": two different ones of :mod:`arec.augment`'s three."""
