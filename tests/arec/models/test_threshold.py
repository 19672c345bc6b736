from __future__ import annotations

import pytest
import torch

from arec.models import FlattenedThresholdNetwork, ThresholdNetwork


@pytest.fixture
def features() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 8)


@pytest.mark.parametrize("context", [True, False])
def test_range_and_dependence_on_the_batch(features, context) -> None:
    network = ThresholdNetwork(8, context=context)
    k = network(features)
    assert k.shape == (6,)
    assert k.abs().max() <= 1.05
    others = network(torch.cat([features[:1], torch.randn(5, 8)]))
    assert torch.allclose(others[0], k[0], atol=1e-6) is not context, "the same row elsewhere"


def test_scale_of_the_features_does_not_matter(features) -> None:
    network = ThresholdNetwork(8)
    torch.testing.assert_close(network(features), network(1000 * features))


def test_the_gradient_is_whole(features) -> None:
    network = ThresholdNetwork(8).double()
    assert torch.autograd.gradcheck(network, features.double().requires_grad_())


def test_flattened_is_linear_in_the_batch_as_one_vector(features) -> None:
    network = FlattenedThresholdNetwork(8, batch_size=6)
    first, second = network.layers
    x = second.weight @ (first.weight @ features.reshape(48) + first.bias) + second.bias
    torch.testing.assert_close(network(features), 2.1 * (x.sigmoid() - 0.5))


def test_flattened_fills_a_smaller_batch_with_zeros_and_refuses_a_larger_one(features) -> None:
    network = FlattenedThresholdNetwork(8, batch_size=6)
    filled = torch.cat([features[:4], torch.zeros(2, 8)])
    torch.testing.assert_close(network(features[:4]), network(filled)[:4])
    with pytest.raises(ValueError, match="expected at most 6 rows, .* got 7"):
        network(torch.zeros(7, 8))


def test_flattened_has_the_size_of_the_released_one() -> None:
    with torch.device("meta"):
        network = FlattenedThresholdNetwork(64, batch_size=1024)
    assert sum(p.numel() for p in network.parameters()) // 10**6 == 545


@pytest.mark.parametrize(
    ("network", "sizes"), [(ThresholdNetwork, (8,)), (FlattenedThresholdNetwork, (8, 6))]
)
def test_thresholds_start_near_the_top(network, sizes) -> None:
    torch.manual_seed(0)
    k = network(*sizes)(torch.randn(6, 8))
    assert k.tolist() == pytest.approx([0.95] * 6, abs=0.1)


def test_the_network_of_rows_has_two_layers_with_gelu(features) -> None:
    network = ThresholdNetwork(8, context=False)
    first, _, second = network.layers
    unit = torch.nn.functional.normalize(features, dim=-1)
    inner = torch.nn.functional.gelu(first(unit))
    expected = 2.1 * (second(inner).squeeze(-1).sigmoid() - 0.5)
    torch.testing.assert_close(network(features), expected)
