from __future__ import annotations

import pytest
import torch

from arec.models.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drops_a_share_p_and_scales_the_rest(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    count = 200_000
    x = torch.ones(count, dtype=dtype)
    y = Dropout(p)(x)
    kept = y != 0
    deviation = (p * (1 - p) / count) ** 0.5
    assert y.dtype is dtype
    assert (~kept).float().mean().item() == pytest.approx(p, abs=5 * deviation)
    expected = torch.full_like(y[kept], 1 / (1 - p))
    torch.testing.assert_close(y[kept], expected, rtol=1e-4 if dtype is torch.float32 else 2**-8, atol=0)


@pytest.mark.parametrize("shape", [(3,), (5, 7), (2, 3, 4), (0, 4)])
def test_gradient_goes_where_the_values_went(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.ones(shape, requires_grad=True)
    y = Dropout(0.5)(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_elements_are_independent() -> None:
    """Four elements share a draw: neighbours must not."""
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(100_000, 4)) != 0).float()
    correlation = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / 100_000**0.5


def test_a_seed_repeats_and_a_second_call_differs() -> None:
    x, dropout = torch.ones(1000), Dropout(0.3)
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


def test_nothing_is_dropped_in_evaluation_or_at_0() -> None:
    x = torch.randn(100)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_almost_1_stays_finite() -> None:
    assert Dropout(1 - 1e-9)(torch.ones(1000)).isfinite().all()
