"""A small batch and a small encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from arec.config import Config
from arec.data.batches import Batch
from arec.objectives import Objective, build_objective

ROWS, LENGTH, ITEMS = 6, 5, 12


def make_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def items(lengths: torch.Tensor) -> torch.Tensor:
        drawn = torch.randint(1, ITEMS + 1, (ROWS, LENGTH), generator=generator)
        return drawn * (torch.arange(LENGTH) < lengths[:, None])

    lengths, partner_lengths = torch.tensor([5, 4, 3, 2, 1, 5]), torch.tensor([1, 2, 3, 4, 5, 5])
    return Batch(items(lengths), items(lengths), lengths, items(partner_lengths), partner_lengths)


@pytest.fixture
def batch() -> Batch:
    return make_batch(0)


@pytest.fixture
def batch_before(batch) -> Callable[[list[int]], Batch]:
    """The batch with these items after its sequences."""

    def batch_before(items: list[int]) -> Batch:
        targets = batch.targets.clone()
        targets[range(ROWS), batch.lengths - 1] = torch.tensor(items)
        return replace(batch, targets=targets)

    return batch_before


@pytest.fixture
def other_batch() -> Batch:
    return make_batch(1)


@pytest.fixture
def build() -> Callable[..., Objective]:
    """An objective without dropout, unless the settings say otherwise."""

    def build(**settings) -> Objective:
        torch.manual_seed(0)
        small = {"max_length": LENGTH, "hidden_size": 16, "feed_forward": 16, "dropout": 0.0}
        return build_objective(Config(**small | settings), ITEMS)

    return build
