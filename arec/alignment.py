"""How the features of views lie on the unit sphere: alignment and uniformity (Eq. 3 and 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from arec.data.batches import Batch
from arec.objectives.contrastive import ContrastiveObjective
from arec_kernels import alignment_uniformity


@torch.no_grad()
def view_alignment(
    objective: ContrastiveObjective, batches: Iterable[Batch]
) -> dict[str, float]:
    """``alignment`` and ``uniformity`` of the view pairs of all the batches together.

    Views differ by dropout and augmentation, so the objective sees them as in training. Of several
    pairs a sequence (``views="us"``) the means. What a single row has none of is left out.
    """
    with objective.same_chance():
        views = [
            torch.stack([z.unflatten(0, (2, -1)) for z in objective.view_pairs(batch)])
            for batch in (batch.to(objective.device) for batch in batches)
        ]
    pairs = torch.cat(views, dim=2)  # (pairs, 2, rows, d)
    figures = torch.tensor([alignment_uniformity(x, y) for x, y in pairs]).mean(dim=0)
    named = zip(("alignment", "uniformity"), figures.tolist())
    return {name: figure for name, figure in named if math.isfinite(figure)}
