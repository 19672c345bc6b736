"""The oracle against loops written from the definitions, and its derivatives by finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from correctness import OPTIONS, clear_thresholds, make_groups, make_rows, run, upstream_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arec_kernels import reference


def cosine(a: list[float], b: list[float]) -> float:
    norm_a, norm_b = math.hypot(*a), math.hypot(*b)
    if norm_a < 1e-12 or norm_b < 1e-12:
        return 0.0
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / (norm_a * norm_b)


def candidates(i: int, n: int, groups: list[int] | None) -> list[int]:
    return [
        j
        for j in range(n)
        if j not in (i, (i + n // 2) % n)
        and not (groups is not None and groups[i] == groups[j] >= 0)
    ]


def naive_row(
    i, z, k, *, temperature, groups, positives, partner_weight, denominator, weighting, width
) -> tuple[float, float, int]:
    """Loss, derivative by k_i with the straight-through width, and the number of positives."""
    n = len(z)
    s = {j: cosine(z[i], z[j]) for j in range(n)}
    partner = (i + n // 2) % n
    around = candidates(i, n, groups)
    above = [j for j in around if s[j] > k[i]]
    summed = [partner] + [j for j in around if denominator == "all" or j not in above]
    log_d = math.log(math.fsum(math.exp(s[j] / temperature) for j in summed))
    m = len(above)
    alpha = partner_weight
    if not positives:
        loss, total = log_d - s[partner] / temperature, 1.0
    elif weighting == "printed":
        loss = -math.log(alpha * math.exp(s[partner] / temperature - log_d))
        loss -= sum(math.log((1 - alpha) / m * math.exp(s[j] / temperature - log_d)) for j in above)
        total = 1 + m
    else:
        weights = {j: (1 - alpha) / m for j in above}
        weights[partner] = alpha if above or weighting == "label-unnormalised" else 1.0
        total = sum(weights.values())
        loss = total * log_d - sum(w * s[j] / temperature for j, w in weights.items())

    grad_k = 0.0
    for j in around:
        soft = 1 / (1 + math.exp((k[i] - s[j]) / width))
        leaves = math.exp(s[j] / temperature - log_d) if denominator == "negatives" else 0.0
        by_q = -total * leaves
        if positives and m and weighting == "printed":
            by_q += log_d - s[j] / temperature - math.log((1 - alpha) / m) + 1
        elif positives and m:
            mean = sum(s[a] for a in above) / m
            by_q -= (1 - alpha) * (s[j] - mean) / (temperature * m)
        grad_k -= by_q * soft * (1 - soft) / width
    return loss, grad_k, m if positives else 0


def check_against_loops(z: Tensor, k: Tensor, groups: Tensor | None, width: float, **options):
    result = run(reference.adaptive_info_nce, z, k, torch.float64, groups=groups,
                 threshold_grad=width, histogram_bins=5, **options)
    naive = [
        naive_row(i, z.tolist(), k.tolist(), groups=None if groups is None else groups.tolist(),
                  width=width, **options)
        for i in range(len(z))
    ]
    loss, grad_k, m = (torch.tensor(c, dtype=torch.float64) for c in zip(*naive, strict=True))
    torch.testing.assert_close(result.loss, loss, rtol=1e-10, atol=1e-10)
    upstream = upstream_gradients(len(z)).double()
    torch.testing.assert_close(result.grad_threshold, upstream * grad_k, rtol=1e-9, atol=1e-9)
    assert torch.equal(result.stats.positives, m.long())


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_definition(options: dict, grouped: bool, temperature: float) -> None:
    z = make_rows(10, 3, torch.float64)
    z[2] = 0
    groups = make_groups(10) if grouped else None
    check_against_loops(z, clear_thresholds(z, groups), groups, 0.2, temperature=temperature,
                        partner_weight=0.3, **options)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 5), st.integers(0, 999), st.floats(0.05, 3),
    st.floats(0.05, 0.95), st.sampled_from(OPTIONS), st.booleans(),
)
def test_definition_anywhere(half, d, seed, temperature, alpha, options, grouped) -> None:
    z = make_rows(2 * half, d, torch.float64, seed)
    groups = make_groups(2 * half) if grouped else None
    check_against_loops(z, clear_thresholds(z, groups, seed), groups, 0.3,
                        temperature=temperature, partner_weight=alpha, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_derivatives_by_rows(options: dict) -> None:
    z = make_rows(6, 2, torch.float64)
    groups = torch.tensor([0, 1, 0, 2, -1, -1])
    k = clear_thresholds(z, groups)

    def loss(z: Tensor) -> Tensor:
        return reference.adaptive_info_nce(z, k, groups=groups, temperature=0.4,
                                           reduction="none", **options)

    z.requires_grad_()
    assert torch.autograd.gradcheck(loss, z)
    assert torch.autograd.gradgradcheck(loss, z)


def test_straight_through_leaves_values_and_row_gradients_alone() -> None:
    z = make_rows(12, 4, torch.float64)
    k = clear_thresholds(z)
    for options in OPTIONS:
        hard = run(reference.adaptive_info_nce, z, k, torch.float64, **options)
        soft = run(reference.adaptive_info_nce, z, k, torch.float64, threshold_grad=0.1, **options)
        assert torch.equal(hard.loss, soft.loss)
        torch.testing.assert_close(hard.grad_z, soft.grad_z, rtol=1e-12, atol=1e-14)
        assert hard.grad_threshold.eq(0).all()


def test_straight_through_survives_an_overflowing_share() -> None:
    # e^(1000 s) of the excluded candidates is far beyond that of all that stays.
    z = make_rows(12, 4)
    result = run(reference.adaptive_info_nce, z, torch.full((12,), -0.5), torch.float32,
                 temperature=1e-3, threshold_grad=0.1)
    hard = run(reference.adaptive_info_nce, z, torch.full((12,), -0.5), torch.float32,
               temperature=1e-3)
    assert torch.equal(result.loss, hard.loss)
    assert result.grad_z.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_overflowing_share_of_no_slope_is_no_gradient(dtype: torch.dtype) -> None:
    z = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0], [0.8, 0.6]], dtype=dtype)
    result = run(reference.adaptive_info_nce, z, torch.full((4,), -math.inf), dtype,
                 temperature=1e-3, threshold_grad=0.1, weighting="printed")
    assert result.grad_threshold.eq(0).all()


def test_straight_through_keeps_a_slope_forty_widths_away() -> None:
    """Row 0 excludes two pairs, each e^(2 / temperature) times its partner's exponential."""
    z = torch.tensor([[1.0], [1.0], [-1.0], [1.0]], dtype=torch.float64)
    temperature, width = 0.055, 0.025
    result = run(reference.adaptive_info_nce, z, torch.zeros(4, dtype=torch.float64), z.dtype,
                 positives=False, temperature=temperature, threshold_grad=width)
    t = math.exp(-1 / width)
    slope = 2 * math.exp(2 / temperature) * t / (1 + t) ** 2 / width
    assert result.grad_threshold[0].item() == pytest.approx(-slope, rel=1e-9)  # run's upstream: -1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_unit_rows_only(dtype: torch.dtype) -> None:
    z = make_rows(6, 5, dtype)
    unit = reference.unit_rows(z).to(dtype).double()
    s = reference.cosine_similarities(z)
    assert s.dtype is torch.float32
    torch.testing.assert_close(s.double(), unit @ unit.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("upstream", [1e-7, 1e6])
def test_half_precision_rounds_gradients_at_the_end(upstream: float) -> None:
    """Those of unit rows are under float16's range, or over it."""
    z = make_rows(8, 6, torch.float16) * (100 if upstream > 1 else 1e-3)
    gradients = []
    for dtype in (torch.float16, torch.float64):
        rows = z.detach().to(dtype).requires_grad_()
        loss = reference.adaptive_info_nce(rows, 0.05)
        loss.backward(torch.full_like(loss, upstream))
        gradients.append(rows.grad.double())
    torch.testing.assert_close(*gradients, rtol=0.001, atol=0.001 * gradients[1].abs().max().item())


def test_unit_rows_of_any_magnitude() -> None:
    z = torch.tensor([[3e38, 3e38], [1e-11, 0.0], [1e-13, 0.0], [0.0, 0.0], [-3e-38, 4.0]])
    root = math.sqrt(0.5)
    expected = torch.tensor([[root, root], [1, 0], [0, 0], [0, 0], [0, 1]])
    torch.testing.assert_close(reference.unit_rows(z), expected)


def test_zero_rows_have_no_derivative_of_any_order() -> None:
    z = make_rows(8, 3, torch.float64)
    z[2] = 0
    z.requires_grad_()
    loss = reference.adaptive_info_nce(z, 0.1)
    (grad,) = torch.autograd.grad(loss, z, create_graph=True)
    assert grad[2].eq(0).all()
    grad.square().sum().backward()
    assert z.grad.isfinite().all()


def test_memory_of_rows_is_never_written() -> None:
    z = make_rows(8, 3)
    before = z.clone()
    reference.adaptive_info_nce(z, 0.1, threshold_grad=0.1, histogram_bins=4)
    assert torch.equal(z, before)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_thresholds_above_all_similarities_have_a_slope(options: dict) -> None:
    z = make_rows(10, 3, torch.float64)
    check_against_loops(z, torch.full((10,), 1.01, dtype=z.dtype), None, 0.2, temperature=0.5,
                        partner_weight=0.3, **options)


def test_a_large_share_times_a_small_slope_in_float32() -> None:
    """e^100 and e^-80: the first alone is beyond float32."""
    z = torch.tensor([[1.0], [1.0], [-1.0], [1.0]])
    temperature, width = 0.02, 0.0125
    result = run(reference.adaptive_info_nce, z, torch.zeros(4), z.dtype, positives=False,
                 temperature=temperature, threshold_grad=width)
    expected = -2 * math.exp(2 / temperature - 1 / width) / width
    assert result.grad_threshold[0].item() == pytest.approx(expected, rel=1e-4)
