"""Views of a sequence by crop, mask and reorder (CL4SRec, Xie et al., 2022), a batch at a time.

Sequences are ``(B, L)`` int64, padded on the right with 0, with ``lengths`` ``(B,)``. Every function
returns new tensors, chance comes from torch's generator, and a share of a sequence of n items is
``⌊ratio · n⌋`` items, as in the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor


def crop(items: Tensor, lengths: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """A random run of ``⌊ratio · n⌋`` items, at least one, and its length."""
    kept = _share(ratio, lengths).clamp(min=1)
    start = _random_start(lengths, kept)
    steps = torch.arange(items.shape[1], device=items.device)
    source = (start[:, None] + steps).clamp(max=items.shape[1] - 1)
    return items.gather(1, source) * (steps < kept[:, None]), kept


def mask(items: Tensor, lengths: Tensor, ratio: float, mask_token: int) -> Tensor:
    """``⌊ratio · n⌋`` random items become ``mask_token``."""
    steps = torch.arange(items.shape[1], device=items.device)
    keys = torch.rand(items.shape, device=items.device) + (steps >= lengths[:, None])
    rank = keys.argsort(dim=1).argsort(dim=1)  # padding ranks last
    return items.masked_fill(rank < _share(ratio, lengths)[:, None], mask_token)


def reorder(items: Tensor, lengths: Tensor, ratio: float) -> Tensor:
    """A random run of ``⌊ratio · n⌋`` items is shuffled."""
    moved = _share(ratio, lengths)
    start = _random_start(lengths, moved)[:, None]
    steps = torch.arange(items.shape[1], device=items.device)
    inside = (steps >= start) & (steps < start + moved[:, None])
    # Keys of the run lie between its first position and the next one after it: it stays in place.
    within = start + moved[:, None] * torch.rand(items.shape, device=items.device)
    keys = torch.where(inside, within, steps)
    return items.gather(1, keys.argsort(dim=1, stable=True))


def two_views(
    items: Tensor,  # (B, L)
    lengths: Tensor,  # (B,)
    *,
    crop_ratio: float,
    mask_ratio: float,
    reorder_ratio: float,
    mask_token: int,
) -> list[tuple[Tensor, Tensor]]:
    """Two views of each sequence by two different ones of the three, all pairs equally likely.

    Returns:
        items ``(B, L)`` and lengths ``(B,)`` of the first and of the second views.
    """
    cropped, kept = crop(items, lengths, crop_ratio)
    masked = mask(items, lengths, mask_ratio, mask_token)
    reordered = reorder(items, lengths, reorder_ratio)
    views = torch.stack([cropped, masked, reordered])  # (3, B, L)
    view_lengths = torch.stack([kept, lengths, lengths])  # (3, B)
    rows = torch.arange(len(items), device=items.device)
    chosen = torch.rand(len(items), 3, device=items.device).argsort(dim=1)  # (B, 3)
    return [(views[chosen[:, i], rows], view_lengths[chosen[:, i], rows]) for i in (0, 1)]


def _share(ratio: float, lengths: Tensor) -> Tensor:  # (B,) int64
    return (lengths.double() * ratio).long()


def _random_start(lengths: Tensor, run: Tensor) -> Tensor:  # (B,) int64
    """Uniform over the places of a run in its sequence."""
    places = lengths - run + 1
    return (torch.rand(lengths.shape, dtype=torch.float64, device=lengths.device) * places).long()
