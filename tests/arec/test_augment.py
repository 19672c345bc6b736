from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arec.augment import crop, mask, reorder, two_views

MASK = 1000


def batch(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences in which every item occurs once, so that it says where it came from."""
    torch.manual_seed(seed)
    counts = torch.tensor(lengths)
    items = torch.arange(1, max(lengths) + 1).expand(len(lengths), -1)
    return items * (items <= counts[:, None]), counts


batches = st.builds(
    batch, st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(0, 1000)
)
ratios = st.floats(0, 1)


@given(batches, ratios)
def test_crop_keeps_a_run(drawn, ratio) -> None:
    items, lengths = drawn
    before = items.clone()
    cropped, kept = crop(items, lengths, ratio)
    for row, count, length in zip(cropped.tolist(), kept.tolist(), lengths.tolist()):
        assert count == max(1, math.floor(ratio * length))
        assert row[:count] == list(range(row[0], row[0] + count))
        assert 1 <= row[0] and row[count - 1] <= length
        assert not any(row[count:])
    assert torch.equal(items, before)


@given(batches, ratios)
def test_mask_hides_its_share(drawn, ratio) -> None:
    items, lengths = drawn
    before = items.clone()
    masked = mask(items, lengths, ratio, MASK)
    hidden = masked == MASK
    assert torch.equal(
        hidden.sum(dim=1), torch.tensor([math.floor(ratio * n) for n in lengths.tolist()])
    )
    assert torch.equal(masked[~hidden], items[~hidden])
    assert items[hidden].all(), "no padding is masked"
    assert torch.equal(items, before)


@given(batches, ratios)
def test_reorder_shuffles_a_run(drawn, ratio) -> None:
    items, lengths = drawn
    before = items.clone()
    shuffled = reorder(items, lengths, ratio)
    assert torch.equal(shuffled.sort(dim=1).values, items.sort(dim=1).values)
    for row, length in zip(shuffled.tolist(), lengths.tolist()):
        moved = [i for i in range(length) if row[i] != i + 1]
        assert not moved or moved[-1] - moved[0] < math.floor(ratio * length)
        assert not any(row[length:])
    assert torch.equal(items, before)


def test_every_place_and_every_item_has_its_chance() -> None:
    items, lengths = batch([10] * 20_000)
    starts = crop(items, lengths, 0.6)[0][:, 0].bincount()[1:]
    assert starts.tolist() == pytest.approx([4000] * 5, rel=0.1)
    hidden = (mask(items, lengths, 0.3, MASK) == MASK).sum(dim=0)
    assert hidden.tolist() == pytest.approx([6000] * 10, rel=0.1)
    moved = reorder(items[:, :5], lengths // 2, 1.0)[:, 0].bincount()[1:]
    assert moved.tolist() == pytest.approx([4000] * 5, rel=0.1)
    # A run of 3 of 10 has 8 places, and a shuffled item stays where it was in 1 of 3.
    places = torch.tensor([1, 2, 3, 3, 3, 3, 3, 3, 2, 1]) / 8
    moved = (reorder(items, lengths, 0.3) != items).sum(dim=0)
    assert moved.tolist() == pytest.approx((20_000 * places * 2 / 3).tolist(), rel=0.1)


def test_two_views_are_two_different_augmentations() -> None:
    items, lengths = batch([10] * 6000)
    before = items.clone()
    views = two_views(
        items, lengths, crop_ratio=0.6, mask_ratio=0.3, reorder_ratio=0.6, mask_token=MASK
    )
    kinds = []
    for view, length in views:
        cropped, masked = length == 6, (view == MASK).any(dim=1)
        assert not (cropped & masked).any(), "one augmentation a view"
        kinds.append(torch.where(cropped, 0, torch.where(masked, 1, 2)))
    assert (kinds[0] != kinds[1]).all()
    pairs = (3 * kinds[0] + kinds[1]).bincount(minlength=9)
    assert pairs[[1, 2, 3, 5, 6, 7]].tolist() == pytest.approx([1000] * 6, rel=0.15)
    assert torch.equal(items, before)
