from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from arec.config import Config
from arec.data.batches import Batch
from arec.detection import false_negative_detection
from arec.models import Encoder
from arec.objectives import AdaptiveRec


def test_counts_are_those_of_the_pairs() -> None:
    torch.manual_seed(0)
    size, length = 10, 4
    encoder = Encoder(9, max_length=length, hidden_size=8, feed_forward=8, dropout=0.5)
    objective = AdaptiveRec(encoder, Config(views="su")).train()
    torch.nn.init.constant_(objective.threshold.layers[-1].bias, 0.3)

    def batch(rows: int) -> Batch:
        full = torch.full((rows,), length)
        inputs, partners = torch.randint(1, 10, (2, rows, length))
        intents = torch.randint(0, 3, (2 * rows,))
        return Batch(inputs, inputs, full, partners, full, intents)

    batches = [batch(size), batch(1)]  # the second has no candidates at all
    found = false_negative_detection(objective, batches)

    (z,) = objective.view_pairs(batches[0])
    s = F.cosine_similarity(z[:, None], z[None], dim=-1)
    candidate = ~torch.eye(2 * size, dtype=torch.bool).roll(size, 0) & ~torch.eye(2 * size).bool()
    selected = (s > objective.thresholds(z).repeat(2)[:, None]) & candidate
    intents = batches[0].intents
    true = (intents[:, None] == intents) & candidate
    assert 0 < selected.sum() < candidate.sum()
    assert found["precision"] == pytest.approx((selected & true).sum() / selected.sum())
    assert found["recall"] == pytest.approx((selected & true).sum() / true.sum())
    assert found["base_rate"] == pytest.approx(true.sum() / candidate.sum())
    assert found["selected"] == pytest.approx(selected.sum() / candidate.sum())
