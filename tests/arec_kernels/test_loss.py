"""The public loss: arguments, edges that every backend shares, known special cases."""

from __future__ import annotations

import inspect
import math
import re
import typing

import pytest
import torch
from available import needs_cpp
from correctness import NAN_OF_A_GPU, OPTIONS, assert_correct, make_groups, make_rows
from torch.nn import functional as F

from arec_kernels import (
    AdaptiveInfoNCE,
    InfoNCEStats,
    adaptive_info_nce,
    backends,
    reference,
    registration,
)
from arec_kernels.registration import BACKENDS, IMPLEMENTED

Z = make_rows(8, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": [[1.0]]}, "z: expected a 2-d tensor .* got list"),
        ({"z": torch.zeros(4)}, r"z: expected a 2-d tensor .* got shape \(4,\)"),
        ({"z": torch.zeros(0, 3)}, r"z: expected a 2-d tensor .* got shape \(0, 3\)"),
        ({"z": torch.zeros(4, 0)}, r"z: expected a 2-d tensor .* got shape \(4, 0\)"),
        ({"z": torch.zeros(5, 3)}, "z: expected an even number of rows .* got 5"),
        ({"z": torch.zeros(4, 3, dtype=torch.int64)}, "z: expected float32.* got torch.int64"),
        ({"z": torch.ones(4, 3).to_sparse()}, "z: expected a dense tensor, got torch.sparse_coo"),
        ({"threshold": "high"}, "threshold: expected a number or a tensor, got str"),
        ({"threshold": torch.zeros(5)}, r"threshold: expected shape \(8,\) or \(4,\)"),
        ({"threshold": torch.zeros(8, 1)}, r"threshold: expected shape .* got \(8, 1\)"),
        ({"threshold": torch.zeros(8, dtype=torch.int32)}, "threshold: expected a float type"),
        ({"threshold": torch.zeros(8).to_sparse()}, "threshold: expected a dense tensor"),
        ({"threshold": torch.zeros(8, device="meta")}, "threshold: expected device cpu"),
        ({"temperature": 0.0},
         r"temperature: expected a Python number from 1e-20 to 1e\+20, which gets no gradient, got 0"),
        ({"temperature": 1e-21}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": torch.tensor(1.0)}, "temperature: .* no gradient, got a tensor"),
        ({"z": [torch.ones(4, 3)] * 2}, r"z: .* got list; two views are one z: torch.cat\(\["),
        ({"threshold": torch.ones(8, 3)}, r"threshold: .* a matrix like z; two views are one z: torch.cat"),
        ({"temperature": True}, "temperature"),
        ({"threshold_grad": True}, "threshold_grad"),
        ({"threshold_grad": torch.ones(2)}, "threshold_grad: .* got a tensor"),
        ({"threshold": True}, "threshold: expected a number or a tensor, got bool"),
        ({"groups": [1] * 8}, "groups: expected a tensor of int8 to int64 or uint8, got list"),
        ({"groups": torch.zeros(8)}, "groups: expected a tensor of int8 to int64 or uint8, got torch.float32"),
        ({"groups": torch.zeros(7, dtype=torch.int64)}, r"groups: expected shape \(8,\) or \(4,\)"),
        ({"groups": torch.tensor(1)}, "groups: expected shape"),
        ({"positives": "no"}, "positives: expected True or False, got 'no'"),
        ({"partner_weight": 0.0}, r"partner_weight: expected a number in \(0, 1\]"),
        ({"partner_weight": 1.1}, "partner_weight"),
        ({"partner_weight": 1, "weighting": "printed"}, "partner_weight: expected a number < 1"),
        ({"denominator": "both"}, "denominator: expected one of .* got 'both'"),
        ({"weighting": "labels"}, "weighting: expected one of .* got 'labels'"),
        ({"threshold_grad": 0.0}, "threshold_grad: expected None or a width from 1e-20 to 1e"),
        ({"threshold_grad": math.inf}, "threshold_grad"),
        ({"histogram_bins": 0}, "histogram_bins: expected an integer from 1 to 4194304, got 0"),
        ({"histogram_bins": 1 << 23}, "histogram_bins: expected an integer from 1 to 4194304"),
        ({"histogram_bins": 2.0}, "histogram_bins"),
        ({"reduction": "max"}, "reduction: expected one of .* got 'max'"),
    ],
)
def test_bad_arguments(backend: str, change: dict, message: str) -> None:
    arguments = {"z": Z, "threshold": 0.1} | change
    with pytest.raises(ValueError, match=message):
        adaptive_info_nce(**arguments, backend=backend)
    with pytest.raises(ValueError, match=message):
        reference.adaptive_info_nce(**arguments)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="z: expected a dense tensor, got a nested one"):
        adaptive_info_nce(torch.nested.nested_tensor([Z[0], Z[1]]), 0.1)


@pytest.mark.parametrize("extreme", [1e-20, 1e20])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_extreme_numbers(backend: str, extreme: float, reduction: str) -> None:
    z, k = make_rows(10, 5).requires_grad_(), torch.full((10,), 0.3, requires_grad=True)
    loss = adaptive_info_nce(z, k, temperature=extreme, threshold_grad=extreme, reduction=reduction,
                             backend=backend)
    loss.backward()
    exact = reference.adaptive_info_nce(z.detach().double(), 0.3, temperature=extreme,
                                        reduction=reduction)
    torch.testing.assert_close(loss.detach(), exact.float(), rtol=1e-5, atol=0)
    assert z.grad.isfinite().all() and k.grad.isfinite().all()


def test_a_number_beyond_float32_is_infinite(backend: str) -> None:
    for number, same in ((1e39, math.inf), (-1e300, -math.inf), (10**400, math.inf)):
        losses = [adaptive_info_nce(Z, k, backend=backend) for k in (number, torch.tensor(same))]
        assert torch.equal(*losses)


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="backend: expected None, 'reference' or one of"):
        adaptive_info_nce(Z, 0.1, backend="tpu")
    with pytest.raises(ValueError, match="backend: expected None, 'reference' or one of"):
        AdaptiveInfoNCE(backend="tpu")


def test_type_checkers_see_the_same_arguments() -> None:
    """With `histogram_bins` a pair, without a tensor."""
    overloads = [inspect.signature(f) for f in typing.get_overloads(adaptive_info_nce)]
    parameters = inspect.signature(adaptive_info_nce).parameters
    assert len(overloads) == 2
    for overload in overloads:
        for name, parameter in parameters.items():
            if name != "histogram_bins":
                assert overload.parameters[name].annotation == parameter.annotation
        assert list(overload.parameters) == list(parameters)


def test_the_help_names_the_backends_there_are() -> None:
    _, _, described = adaptive_info_nce.__doc__.partition("backend: ")
    named = re.findall(r'"(\w+)"', described.partition("\n\n")[0])
    assert named == ["reference", *BACKENDS]


def test_a_backend_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run here: "):
        adaptive_info_nce(Z, 0.1, backend="triton")


def test_one_extension_that_is_missing_beside_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "IMPLEMENTED", {("cpp", "cpu")})
    monkeypatch.setitem(registration.EXTENSION_ERRORS, "cuda", "no module")
    with pytest.raises(RuntimeError, match=r"no compiled extension can be used \(no module\)"):
        adaptive_info_nce(Z, 0.1, backend="cuda")


@needs_cpp
def test_cpp_takes_cpu_tensors_only() -> None:
    with pytest.raises(RuntimeError, match="'cpp' cannot run here: it does not take .* on meta"):
        adaptive_info_nce(torch.zeros(4, 3, device="meta"), 0.1, backend="cpp")


def test_the_default_takes_meta_tensors() -> None:
    assert adaptive_info_nce(torch.zeros(8, 3, device="meta"), 0.1).shape == ()


def test_default_backend() -> None:
    expected = "cpp" if ("cpp", "cpu") in IMPLEMENTED else "reference"
    assert backends.choose_backend(None, Z) == expected


def test_reductions(backend: str, device: str) -> None:
    z = Z.to(device).requires_grad_()
    k = torch.full((8,), 0.1, device=device, requires_grad=True)
    options = {"threshold_grad": 0.2, "backend": backend}
    rows = adaptive_info_nce(z, k, reduction="none", **options)
    assert rows.shape == (8,) and rows.dtype is torch.float32
    for reduction in ("mean", "sum"):
        loss = adaptive_info_nce(z, k, reduction=reduction, **options)
        expected = getattr(rows, reduction)()
        torch.testing.assert_close(loss, expected)
        gradients = torch.autograd.grad(3 * loss, (z, k))
        for own, its in zip(gradients, torch.autograd.grad(3 * expected, (z, k), retain_graph=True)):
            torch.testing.assert_close(own, its, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("value", [0.1, torch.tensor(0.1), torch.full((4,), 0.1),
                                   torch.full((8,), 0.1).double()])
def test_threshold_shapes(backend: str, device: str, value: torch.Tensor | float) -> None:
    z = Z.to(device)
    expected = adaptive_info_nce(z, torch.full((8,), 0.1, device=device), backend=backend)
    if isinstance(value, torch.Tensor):
        value = value.to(device)
    assert torch.equal(adaptive_info_nce(z, value, backend=backend), expected)


@pytest.mark.parametrize("shape", [(), (4,), (8,)])
def test_threshold_gradient_has_the_thresholds_shape(backend: str, device: str, shape) -> None:
    def gradient(value: torch.Tensor) -> torch.Tensor:
        loss = adaptive_info_nce(Z.to(device), value, threshold_grad=0.2, backend=backend)
        return torch.autograd.grad(loss, value)[0]

    rows = gradient(torch.full((8,), 0.13, device=device, requires_grad=True))
    value = gradient(torch.full(shape, 0.13, device=device, requires_grad=True))
    folded = rows if shape == (8,) else rows.view(2, 4).sum(0) if shape else rows.sum()
    assert rows.ne(0).any()
    torch.testing.assert_close(value, folded, rtol=1e-5, atol=1e-6)


def test_no_threshold_gradient_without_a_width(backend: str, device: str) -> None:
    z = Z.detach().to(device).requires_grad_()
    k = torch.full((8,), 0.1, device=device, requires_grad=True)
    adaptive_info_nce(z, k, backend=backend).backward()
    assert z.grad is not None and k.grad is None
    assert not adaptive_info_nce(z.detach(), k, backend=backend).requires_grad


def test_a_threshold_that_changes_nothing_has_gradient_zero(backend: str, device: str) -> None:
    z, k = Z.to(device), torch.zeros(8, device=device, requires_grad=True)
    loss = adaptive_info_nce(z, k, positives=False, denominator="all", threshold_grad=0.1, backend=backend)
    loss.backward()
    assert torch.equal(k.grad, torch.zeros_like(k))


def test_groups_of_sequences_are_those_of_both_views(backend: str, device: str) -> None:
    z, groups = Z.to(device), torch.tensor([0, -1, 0, 5], device=device)
    loss = adaptive_info_nce(z, 0.1, groups=groups.to(torch.int32), backend=backend)
    assert torch.equal(loss, adaptive_info_nce(z, 0.1, groups=groups.repeat(2), backend=backend))
    assert not torch.equal(loss, adaptive_info_nce(z, 0.1, backend=backend))


@pytest.mark.parametrize("temperature", [1.0, 0.07, 0.01])
def test_infinite_threshold_is_nt_xent(backend: str, device: str, temperature: float) -> None:
    z = make_rows(30, 8, device=device)
    logits = F.normalize(z.double()) @ F.normalize(z.double()).T / temperature
    target = torch.arange(30, device=device).roll(15)
    expected = F.cross_entropy(logits.fill_diagonal_(-math.inf), target)
    for weighting in ("label", "label-unnormalised", "printed"):
        loss = adaptive_info_nce(z, math.inf, positives=False, temperature=temperature,
                                 weighting=weighting, backend=backend)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6 / temperature)


def test_modalities_as_groups_are_clip(backend: str, device: str) -> None:
    z = make_rows(30, 8, device=device)
    images, texts = F.normalize(z.double()).chunk(2)
    logits, pair = images @ texts.T / 0.07, torch.arange(15, device=device)
    expected = (F.cross_entropy(logits, pair) + F.cross_entropy(logits.T, pair)) / 2
    groups = torch.arange(2, device=device).repeat_interleave(15)
    loss = adaptive_info_nce(z, math.inf, positives=False, temperature=0.07, groups=groups,
                             backend=backend)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6 / 0.07)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("n", [2, 20])
def test_rows_without_candidates(backend: str, device: str, options: dict, n: int) -> None:
    z = make_rows(n, 6, device=device).requires_grad_()
    groups = torch.zeros(n, dtype=torch.int64, device=device) if n > 2 else None
    loss = adaptive_info_nce(z, 0.1, groups=groups, temperature=0.07, partner_weight=0.3,
                             reduction="none", backend=backend, **options)
    printed = options["positives"] and options["weighting"] == "printed"
    if printed:
        torch.testing.assert_close(loss, torch.full_like(loss, -math.log(0.3)))
    else:
        assert loss.eq(0).all()
    loss.sum().backward()
    assert z.grad.abs().max() <= 1e-6


@pytest.mark.parametrize("value", [math.nan, NAN_OF_A_GPU, math.inf, -math.inf])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.01}, {"denominator": "all"}, {"weighting": "printed"},
                {"positives": False}, {"threshold_grad": 0.1}]
)
@pytest.mark.parametrize("columns", [2, slice(None)], ids=["one", "all"])
def test_not_a_number_in_a_row(backend, device, value, columns, options) -> None:
    z = make_rows(40, 5, device=device)
    z[3, columns] = value
    groups = torch.full((40,), -1, device=device)
    groups[[3, 8]] = 1  # row 8 does not see row 3
    loss, stats = adaptive_info_nce(z, 0.2, groups=groups, reduction="none", histogram_bins=6,
                                    backend=backend, **options)
    assert loss.isnan().tolist() == [i != 8 for i in range(40)]
    pairs = reference.candidates(z, groups)
    pairs[3], pairs[:, 3] = False, False
    assert stats.histogram.sum() == pairs.sum()  # the others


def test_not_a_number_without_candidates(backend: str, device: str) -> None:
    z = torch.tensor([[math.nan, 1.0], [1.0, 1.0]], device=device)
    assert adaptive_info_nce(z, 0.2, reduction="none", backend=backend).isnan().all()


@pytest.mark.parametrize("nan", [math.nan, NAN_OF_A_GPU])
@pytest.mark.parametrize("threshold_grad", [None, 0.1])
@pytest.mark.parametrize(
    "options", [{}, {"positives": False}, {"denominator": "all"}], ids=lambda o: "-".join(o)
)
def test_not_a_number_in_the_threshold(backend, device, options, threshold_grad, nan) -> None:
    k = torch.full((40,), 0.2, device=device)
    k[5] = nan
    k.requires_grad_()
    z = make_rows(40, 5, device=device).requires_grad_()
    loss = adaptive_info_nce(z, k, threshold_grad=threshold_grad, reduction="none", backend=backend, **options)
    assert loss.isnan().nonzero().flatten().tolist() == [5]
    loss.sum().backward()
    assert z.grad.isnan().all()  # what a GradScaler looks at
    if threshold_grad:
        assert k.grad.isnan().nonzero().flatten().tolist() == [5]
    assert adaptive_info_nce(Z.to(device), math.nan, backend=backend).isnan()


@pytest.mark.parametrize("threshold", [math.inf, -math.inf, -3.0])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_no_positives_or_no_negatives_anywhere(backend, device, threshold, options) -> None:
    z = make_rows(12, 4, device=device)
    k = torch.full((12,), threshold, device=device)
    assert_correct(z, k, backend, threshold_grad=0.1, **options)


def test_statistics(backend: str, device: str) -> None:
    z = make_rows(20, 4, device=device)
    groups = make_groups(20, device)
    loss, stats = adaptive_info_nce(z, 0.1, groups=groups, histogram_bins=8, backend=backend)
    assert isinstance(stats, InfoNCEStats) and loss.dim() == 0
    exact = reference.adaptive_info_nce(z.double(), 0.1, groups=groups, histogram_bins=8)[1]
    assert stats.positives.dtype is torch.int64
    assert torch.equal(stats.positives, exact.positives)
    assert torch.equal(stats.histogram, exact.histogram)
    _, stats = adaptive_info_nce(z, 0.1, positives=False, histogram_bins=8, backend=backend)
    assert stats.positives.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types(backend: str, device: str, dtype: torch.dtype) -> None:
    z = Z.detach().to(device, dtype).requires_grad_()
    loss = adaptive_info_nce(z, 0.1, backend=backend)
    loss.backward()
    assert loss.dtype is torch.float32 and z.grad.dtype is dtype


def test_autocast_changes_nothing(backend: str, device: str) -> None:
    z = make_rows(20, 6, device=device).requires_grad_()
    expected = adaptive_info_nce(z, 0.1, temperature=0.1, backend=backend)
    with torch.autocast(device, dtype=torch.bfloat16):
        loss = adaptive_info_nce(z, 0.1, temperature=0.1, backend=backend)
    assert torch.equal(loss, expected)
    assert torch.equal(torch.autograd.grad(loss, z)[0], torch.autograd.grad(expected, z)[0])


def test_module() -> None:
    module = AdaptiveInfoNCE(temperature=0.2, weighting="printed", threshold_grad=0.1)
    groups = torch.tensor([0, 0, 1, 1])
    expected = adaptive_info_nce(Z, 0.1, groups=groups, temperature=0.2, weighting="printed")
    assert torch.equal(module(Z, 0.1, groups), expected)
    assert "temperature=0.2" in repr(module)
    with pytest.raises(ValueError, match="temperature"):
        AdaptiveInfoNCE(temperature=-1)


def test_the_options_of_a_module_may_change_and_are_checked() -> None:
    changes = {
        "temperature": 0.2, "positives": False, "partner_weight": 0.7, "denominator": "all",
        "weighting": "printed", "threshold_grad": 0.1, "histogram_bins": 4, "reduction": "sum",
        "backend": "reference",
    }  # fmt: skip
    module = AdaptiveInfoNCE()
    for name, value in changes.items():
        setattr(module, name, value)
    loss, stats = module(Z, 0.1)
    expected, expected_stats = adaptive_info_nce(Z, 0.1, **changes)
    assert torch.equal(loss, expected) and torch.equal(stats.histogram, expected_stats.histogram)
    assert repr(module) == repr(AdaptiveInfoNCE(**changes)) != repr(AdaptiveInfoNCE())
    module.weighting = "other"
    with pytest.raises(ValueError, match="weighting: expected one of"):
        module(Z, 0.1)


def test_the_default_type_is_no_matter(backend: str, device: str) -> None:
    z = make_rows(20, 6, device=device)
    expected = adaptive_info_nce(z, 0.1, backend=backend)
    torch.set_default_dtype(torch.float64)
    try:
        loss = adaptive_info_nce(z, 0.1, backend=backend)
    finally:
        torch.set_default_dtype(torch.float32)
    assert loss.dtype is torch.float32 and torch.equal(loss, expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_integers_of_groups(dtype: torch.dtype) -> None:
    groups = torch.arange(8) // 2
    losses = [adaptive_info_nce(Z, 0.1, groups=each) for each in (groups, groups.to(dtype))]
    assert torch.equal(*losses)


def test_large_numbers_of_groups(backend: str, device: str) -> None:
    """Hashes, say, which a float would round to one."""
    z, groups = Z.to(device), torch.arange(8, device=device) // 2
    losses = [
        adaptive_info_nce(z, 0.1, groups=each, backend=backend) for each in (groups, groups + (1 << 53))
    ]
    assert torch.equal(*losses)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_thresholds_of_another_float_type(dtype: torch.dtype) -> None:
    k = torch.full((8,), 0.125, dtype=dtype)
    assert torch.equal(adaptive_info_nce(Z, k), adaptive_info_nce(Z, 0.125))


def test_thresholds_keep_their_digits_beside_bfloat16(backend: str, device: str) -> None:
    """0.999 would be 1 in bfloat16, above no cosine of equal rows."""
    z = torch.eye(2, device=device, dtype=torch.bfloat16).repeat(4, 1)
    k = torch.full((8,), 0.999, device=device)
    _, stats = adaptive_info_nce(z, k, histogram_bins=1, backend=backend)
    assert stats.positives.eq(2).all()


def test_float64_is_for_some_backends(compiled: str, device: str) -> None:
    if compiled == "cpp":
        pytest.skip("which is one of them")
    with pytest.raises(RuntimeError, match="float64 is for the backends"):
        adaptive_info_nce(Z.to(device, torch.float64), 0.1, backend=compiled)
