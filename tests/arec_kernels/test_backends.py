"""Every compiled backend against the float64 oracle: shapes, types, options, repeats."""

from __future__ import annotations

import math

import pytest
import torch
from available import EMULATED, needs_cpp
from correctness import (
    MARGINS,
    OPTIONS,
    assert_correct,
    clear_thresholds,
    make_groups,
    make_rows,
    run,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from arec_kernels import adaptive_info_nce, reference

DEFAULTS = {"temperature": 0.2}


def skip_if_slow(backend: str, n: int) -> None:
    if n > EMULATED.get(backend, n):
        pytest.skip("minutes in an emulator")


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("threshold_grad", [None, 0.1])
@pytest.mark.parametrize("temperature", [1.0, 0.02])  # one shift for all rows, and one for each
def test_every_combination(compiled, device, options, grouped, threshold_grad, temperature) -> None:
    z = make_rows(38, 19, device=device)
    groups = make_groups(38, device) if grouped else None
    assert_correct(z, clear_thresholds(z, groups), compiled, groups=groups, partner_weight=0.3,
                   temperature=temperature, threshold_grad=threshold_grad, histogram_bins=11,
                   **options)


@pytest.mark.parametrize(
    ("n", "d"),
    [
        (2, 1),  # only partners: no candidates
        (4, 1),  # similarities of exactly 1 and -1
        (6, 300),  # few rows, many columns
        (14, 5),
        (16, 16),  # whole vectors
        (34, 33),  # one past
        (62, 64),
        (64, 63),
        (66, 65),
        (130, 17),
        (254, 100),
        (258, 128),
        (514, 64),
        (770, 31),
        (1000, 300),  # no multiple of anything
    ],
)
def test_shapes(compiled: str, device: str, n: int, d: int) -> None:
    skip_if_slow(compiled, n)
    z = make_rows(n, d, device=device)
    groups = make_groups(n, device)
    assert_correct(z, clear_thresholds(z, groups), compiled, groups=groups, threshold_grad=0.1,
                   histogram_bins=64, **DEFAULTS)


@pytest.mark.parametrize("temperature", [2.0, 0.07, 0.025, 0.0249, 0.01, 1e-3])
@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("n", [10, 150])
def test_temperatures(compiled, device, temperature, denominator, n) -> None:
    skip_if_slow(compiled, n)
    z = make_rows(n, 24, device=device)
    assert_correct(z, clear_thresholds(z), compiled, temperature=temperature,
                   denominator=denominator)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 1e-3])
def test_aligned_views_cancel(compiled: str, device: str, temperature: float) -> None:
    z = make_rows(40, 16, device=device)
    z[20:] = z[:20] * (1 + 1e-6)
    assert_correct(z, clear_thresholds(z), compiled, temperature=temperature)


@pytest.mark.parametrize("weighting", ["label", "label-unnormalised", "printed"])
@pytest.mark.parametrize("temperature", [0.03, 0.02])  # one shift for all rows, and one for each
def test_the_little_that_aligned_views_leave_is_no_noise(
    compiled, device, weighting, temperature
) -> None:
    """Where log D is the partner's logit but for 1e-6 of itself, float32 has its eps of it."""
    z = make_rows(16, 16, device=device)
    z[8:] = z[:8] + 0.02 * z[8:]
    k = torch.full((16,), 2.0, device=device)  # no positives: the partner's logit cancels
    options = {"temperature": temperature, "weighting": weighting, "denominator": "all"}
    result = run(adaptive_info_nce, z, k, z.dtype, backend=compiled, **options)
    exact = run(reference.adaptive_info_nce, z, k, torch.float64, **options)
    assert (result.grad_z - exact.grad_z).norm() <= 1e-5 / temperature * exact.grad_z.norm()


def test_partners_with_nearly_all_of_the_denominator(compiled: str, device: str) -> None:
    """log D and the partner's logit are alike and large; their difference is the gradient."""
    z = make_rows(18, 65, device=device)
    assert_correct(z, clear_thresholds(z), compiled, temperature=0.0545, denominator="all",
                   positives=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "d"), [(6, 3), (66, 40), (200, 64)])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_half_precision(compiled, device, dtype, n, d, temperature) -> None:
    skip_if_slow(compiled, n)
    z = make_rows(n, d, dtype, device=device)
    assert_correct(z, clear_thresholds(z), compiled, temperature=temperature)


@needs_cpp
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_float64(options: dict) -> None:
    z = make_rows(30, 7, torch.float64)
    groups = make_groups(30)
    k = clear_thresholds(z, groups)
    options = options | {"groups": groups, "temperature": 0.3, "threshold_grad": 0.2}
    result = run(adaptive_info_nce, z, k, z.dtype, backend="cpp", **options)
    exact = run(reference.adaptive_info_nce, z, k, z.dtype, **options)
    torch.testing.assert_close(result[:3], exact[:3], rtol=1e-10, atol=1e-12)


@needs_cpp
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_derivatives_in_float64(options: dict) -> None:
    z = make_rows(6, 3, torch.float64)
    k = clear_thresholds(z)
    assert torch.autograd.gradcheck(
        lambda z: adaptive_info_nce(z, k, temperature=0.4, reduction="none", backend="cpp",
                                    **options),
        z.requires_grad_(),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[
    HealthCheck.function_scoped_fixture
])
@given(
    half=st.integers(1, 60), d=st.integers(1, 70), seed=st.integers(0, 9999),
    temperature=st.floats(1e-3, 3), alpha=st.floats(0.01, 0.99), options=st.sampled_from(OPTIONS),
    width=st.none() | st.floats(0.02, 1), grouped=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@example(  # the roundings of PyTorch in float16 cancel
    half=5, d=5, seed=34, temperature=2.5, alpha=0.5, width=None, grouped=False,
    dtype=torch.float16,
    options={"positives": False, "denominator": "all", "weighting": "label"},
)
@example(  # and here they hide how far the rounding of the unit rows alone moves the gradient
    half=2, d=2, seed=2304, temperature=0.5, alpha=0.5, width=None, grouped=False,
    dtype=torch.float16,
    options={"positives": True, "denominator": "negatives", "weighting": "label"},
)
@example(  # the same for the loss
    half=3, d=4, seed=3638, temperature=0.1, alpha=0.8346368462827847, width=None, grouped=False,
    dtype=torch.float16,
    options={"positives": True, "denominator": "negatives", "weighting": "printed"},
)
def test_anywhere(
    compiled, device, half, d, seed, temperature, alpha, options, width, grouped, dtype
) -> None:
    n = 2 * (half % (EMULATED[compiled] // 2) + 1 if compiled in EMULATED else half)
    z = make_rows(n, d, dtype, seed, device)
    groups = make_groups(n, device) if grouped else None
    if dtype is torch.float16:
        temperature = max(temperature, 0.1)  # gradients grow with its inverse, beyond 65,504
    if temperature < 0.05:
        width = None  # the share of an excluded candidate, e^((s - s') / temperature), may overflow
    assert_correct(z, clear_thresholds(z, groups, seed), compiled, groups=groups,
                   temperature=temperature, partner_weight=alpha, threshold_grad=width, **options)


@pytest.mark.parametrize("temperature", [1 / 64, 2e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_excluded_pair_whose_share_would_overflow_changes_nothing(
    compiled, device, temperature, dtype
) -> None:
    if dtype is torch.float64 and compiled != "cpp":
        pytest.skip("float64 is for the backends 'reference' and 'cpp'")
    z = make_rows(40, 3, dtype, device=device)
    assert_correct(z, clear_thresholds(z), compiled, temperature=temperature)
    z = torch.tensor([[1.0, 0], [1, 0.01], [-1, 0.1], [-1, 0.2]], dtype=dtype, device=device)
    k = torch.zeros(4, dtype=dtype, device=device)  # rows 0 and 1 are above, the partners opposite
    assert_correct(z, k, compiled, temperature=temperature, positives=False)


def test_a_share_far_above_the_denominator_pulls_no_threshold(compiled, device) -> None:
    """e^((s - s') / temperature) overflows, and sigma' is far below its inverse."""
    z = make_rows(64, 64, torch.float32, device=device)
    z[1] = z[0]
    k = torch.full((64,), 0.5, device=device)
    result = assert_correct(z, k, compiled, temperature=0.007, threshold_grad=0.003)
    assert result.grad_threshold.abs().max() < 1e-6


@pytest.mark.parametrize(("temperature", "width", "threshold"), [
    (0.025, 0.01, 0.0), (0.025, 0.005, 0.5), (0.026, 0.008, 0.2), (0.03, 0.005, 0.5), (0.025, 0.02, -1.0),
    (0.025, 0.01, -math.inf), (0.05, 0.005, 0.5), (0.1, 0.01, 0.5),
])  # fmt: skip
def test_a_share_of_a_partner_far_away_pulls_no_threshold(compiled, device, temperature, width, threshold) -> None:
    """D is e^(-1 / temperature) alone, and sigma' far below that."""
    z = torch.zeros(32, 8, device=device)
    z[:, 0] = 1
    z += 0.01 * make_rows(32, 8, torch.float32, device=device)
    z[16] = -z[0]
    k = torch.full((32,), threshold, device=device)
    assert_correct(z, k, compiled, temperature=temperature, threshold_grad=width)


@pytest.mark.parametrize("temperature", [0.01, 0.02])
def test_an_infinite_pull_on_the_threshold_of_a_row_without_upstream_gradient(compiled, device, temperature) -> None:
    """Row 0's duplicate is above its threshold and its partner far away: e^((s - s') / temperature) overflows."""
    z = torch.tensor([[1, 0], [1, 0.05], [-1, 0.1], [-1, 0.2], [-1, 0.05], [-1, 0]], device=device)
    k = torch.full((6,), 0.5, device=device, requires_grad=True)
    options = {"temperature": temperature, "threshold_grad": 1.0, "reduction": "none", "backend": compiled}
    weights = torch.ones(6, device=device)
    weights[0] = 0
    (adaptive_info_nce(z, k, **options) * weights).sum().backward()
    assert k.grad[0] == 0
    assert not k.grad.isnan().any()


def test_large_upstream_gradients_of_rows_far_from_all_their_candidates(compiled, device) -> None:
    """e^(1 / temperature) / D is e^80; a loss scaler's factor comes on top."""
    z = torch.tensor([[1, 0], [1, 0.01], [-1, 0], [-1, 0.01]], device=device)

    def gradient(backend: str, factor: float) -> torch.Tensor:
        leaf = z.clone().requires_grad_()
        loss = adaptive_info_nce(leaf, 0.9, temperature=0.025, backend=backend)
        (factor * loss).backward()
        return leaf.grad / factor

    torch.testing.assert_close(gradient(compiled, 2.0**16), gradient("reference", 1.0))


def test_rows_of_any_magnitude(compiled: str, device: str) -> None:
    z = make_rows(40, 5, device=device)
    z[1] *= 1e30
    z[2] *= 1e-10
    z[3] = 0
    z[24] = 1e-13
    k = clear_thresholds(z)
    z[5, 0], z[5, 1] = 3e38, -3e38  # the square overflows, and so does the norm
    k[:] = 0.5 * k.clamp(-1, 1)
    s = reference.cosine_similarities(z.double())
    k = torch.where(((s - k[:, None].double()).abs() < MARGINS[z.dtype]).any(dim=1), 2.0, k)
    result = run(adaptive_info_nce, z, k, z.dtype, backend=compiled, **DEFAULTS)
    exact = run(reference.adaptive_info_nce, z, k, torch.float64, **DEFAULTS)
    torch.testing.assert_close(result.loss, exact.loss, rtol=1e-5, atol=1e-5)
    assert result.grad_z[[3, 24]].eq(0).all()
    # Row by row: the gradients of tiny rows are larger than all others together.
    error = (result.grad_z - exact.grad_z).norm(dim=1)
    assert (error <= 1e-4 * exact.grad_z.norm(dim=1) + 1e-43).all()


def test_all_rows_zero(compiled: str, device: str) -> None:
    z = torch.zeros(12, 4, device=device)
    result = run(adaptive_info_nce, z, torch.full((12,), 0.5, device=device), z.dtype,
                 backend=compiled)
    assert torch.allclose(result.loss, torch.full_like(result.loss, math.log(11)))
    assert result.grad_z.eq(0).all()


def test_input_of_any_strides(compiled: str, device: str) -> None:
    z = make_rows(34, 6, device=device)
    k = clear_thresholds(z)
    options = {"threshold_grad": 0.1, "backend": compiled, "reduction": "none"}

    def differentiate(z, k):
        z, k = z.requires_grad_(), k.requires_grad_()
        loss = adaptive_info_nce(z, k, **options)
        return loss, *torch.autograd.grad(loss.sum(), (z, k))

    expected = differentiate(z.clone(), k.clone())
    for strided in (z.T.contiguous().T, z.repeat(1, 2)[:, :6], z.repeat_interleave(3, 1)[:, ::3]):
        result = differentiate(strided.detach(), k.repeat_interleave(2)[::2].detach())
        assert all(torch.equal(a, b) for a, b in zip(expected, result, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_repeats_and_thread_counts_give_the_same_bits(compiled, device, temperature) -> None:
    n = min(250, EMULATED.get(compiled, 250))
    z = make_rows(n, 107, device=device)  # work for three threads of a CPU
    k = clear_thresholds(z)
    options = {"temperature": temperature, "threshold_grad": 0.1, "histogram_bins": 9}
    threads = torch.get_num_threads()
    repeats = 3 if compiled in EMULATED else 1000
    try:
        first = run(adaptive_info_nce, z, k, z.dtype, backend=compiled, **options)
        for repeat in range(repeats):
            torch.set_num_threads(1 + repeat % 3)
            again = run(adaptive_info_nce, z, k, z.dtype, backend=compiled, **options)
            for a, b in zip((*first[:3], *first.stats), (*again[:3], *again.stats), strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


def test_a_tie_is_a_negative(compiled: str, device: str) -> None:
    z = torch.eye(4, device=device).repeat(10, 1)  # similarities of exactly 0 and 1
    for threshold, positives in ((1.0, 0), (0.0, 8), (-0.5, 38)):
        k = torch.full((40,), threshold, device=device)
        result = assert_correct(z, k, compiled, histogram_bins=2)
        assert result.stats.positives.eq(positives).all()


@pytest.mark.parametrize("seed", range(10))
def test_forward_and_backward_decide_alike_at_ties(compiled: str, device: str, seed: int) -> None:
    """Each threshold is a similarity in float32: either side is right, two different ones are not."""
    z = make_rows(30, 37, seed=seed, device=device)
    s = reference.cosine_similarities(z)
    k = s.gather(1, (torch.arange(30, device=device)[:, None] + 7) % 30).squeeze(1)

    def run_at(op, k, dtype, **backend):
        return run(op, z, k, dtype, histogram_bins=1, weighting="printed", **backend)

    result = run_at(adaptive_info_nce, k, z.dtype, backend=compiled)
    below, above = k.double() - 5e-6, k.double() + 5e-6
    counts = run_at(reference.adaptive_info_nce, below, torch.float64).stats.positives
    side = torch.where(result.stats.positives == counts, below, above)
    exact = run_at(reference.adaptive_info_nce, side, torch.float64)
    assert torch.equal(result.stats.positives, exact.stats.positives)
    assert (result.grad_z - exact.grad_z).norm() <= 1e-5 * exact.grad_z.norm()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_thresholds_above_all_similarities_have_a_slope(compiled, device, options: dict) -> None:
    z = make_rows(12, 4, device=device)
    k = torch.full((12,), 1.01, device=device)
    assert_correct(z, k, compiled, threshold_grad=0.2, **DEFAULTS, **options)


@needs_cpp
@pytest.mark.parametrize("magnitude", [1e200, 1e-310])
def test_float64_rows_whose_squares_are_out_of_range(magnitude: float) -> None:
    z = make_rows(40, 5, torch.float64)
    z[1] *= magnitude
    k = torch.full((40,), 2.0, dtype=z.dtype)
    result = run(adaptive_info_nce, z, k, z.dtype, backend="cpp", **DEFAULTS)
    exact = run(reference.adaptive_info_nce, z, k, z.dtype, **DEFAULTS)
    torch.testing.assert_close(result.loss, exact.loss, rtol=1e-12, atol=0)
    scale = z.abs().amax(dim=1, keepdim=True)  # gradients are as small as rows are large
    torch.testing.assert_close(result.grad_z * scale, exact.grad_z * scale, rtol=1e-9, atol=1e-12)
