from __future__ import annotations

import torch

from arec.models import ThresholdNetwork


def test_range_and_dependence_on_the_batch() -> None:
    torch.manual_seed(0)
    network = ThresholdNetwork(8)
    features = torch.randn(6, 8)
    k = network(features)
    assert k.shape == (6,)
    assert k.abs().max() <= 1.05
    others = network(torch.cat([features[:1], torch.randn(5, 8)]))
    assert others[0] != k[0], "the same row in another batch gets another threshold"


def test_scale_of_the_features_does_not_matter() -> None:
    torch.manual_seed(0)
    network = ThresholdNetwork(8)
    features = torch.randn(6, 8)
    torch.testing.assert_close(network(features), network(1000 * features))
