"""Histogram, quantile, alignment and uniformity: backends, oracle and plain definitions agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from available import needs_cpp
from correctness import MARGINS, assert_same_histogram, make_groups, make_rows
from torch import Tensor
from torch.nn import functional as F

from arec_kernels import (
    adaptive_info_nce,
    alignment_uniformity,
    reference,
    row_similarity_quantile,
    similarity_histogram,
)

SHAPES = [(2, 1), (6, 1), (4, 3), (34, 17), (66, 5)]  # (6, 1): similarities of 1 and -1


def candidate_similarities(z: Tensor, groups: Tensor | None) -> list[list[float]]:
    unit = F.normalize(z.double())
    n = len(z)
    return [
        [
            float(unit[i] @ unit[j])
            for j in range(n)
            if j not in (i, (i + n // 2) % n)
            and not (groups is not None and groups[i] == groups[j] >= 0)
        ]
        for i in range(n)
    ]


@pytest.mark.parametrize("grouped", [False, True])
def test_oracles_by_their_definition(grouped: bool) -> None:
    z = make_rows(12, 4, torch.float64)
    groups = make_groups(12) if grouped else None
    rows = candidate_similarities(z, groups)
    bins = torch.tensor([min(max(math.floor((s + 1) / 2 * 6), 0), 5) for row in rows for s in row])
    assert torch.equal(
        reference.similarity_histogram(z, 6, groups=groups), torch.bincount(bins, minlength=6)
    )
    for q in (0.0, 0.3, 0.9, 1.0):
        expected = []
        for row in rows:
            r = math.floor(q * len(row))
            edges = [-math.inf, *sorted(row), math.inf]
            expected.append((edges[r] + edges[r + 1]) / 2)
        k = reference.row_similarity_quantile(z, q, groups=groups)
        torch.testing.assert_close(k, torch.tensor(expected, dtype=k.dtype))
    x, y = z.chunk(2)
    alignment, uniformity = reference.alignment_uniformity(x, y)
    x, y = F.normalize(x), F.normalize(y)
    torch.testing.assert_close(alignment, (x - y).norm(dim=1).square().mean())
    torch.testing.assert_close(uniformity, torch.pdist(x).square().mul(-2).exp().mean().log())


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("bins", [1, 7, 1000, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_histogram(backend, device, n, d, bins, dtype) -> None:
    z = make_rows(n, d, dtype, device=device)
    for groups in (None, make_groups(n, device)):
        histogram = similarity_histogram(z, bins, groups=groups, backend=backend)
        assert_same_histogram(histogram, z, groups)


def test_bins_of_another_integer_type(backend: str, device: str) -> None:
    z = make_rows(8, 3, device=device)
    counts = [similarity_histogram(z, bins, backend=backend) for bins in (5, np.int64(5))]
    assert torch.equal(*counts)


def test_histogram_at_the_ends(backend: str, device: str) -> None:
    z = torch.tensor([[1.0], [-1.0], [2.0], [-3.0]], device=device)
    assert similarity_histogram(z, 4, backend=backend).tolist() == [8, 0, 0, 0]
    z = torch.ones(6, 1, device=device)
    assert similarity_histogram(z, 4, backend=backend).tolist() == [0, 0, 0, 24]


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_quantile(backend, device, n, d, q, dtype) -> None:
    z = make_rows(n, d, dtype, device=device)
    for groups in (None, make_groups(n, device)):
        k = row_similarity_quantile(z, q, groups=groups, backend=backend)
        exact = reference.row_similarity_quantile(z.double(), q, groups=groups)
        assert k.dtype is torch.float32
        margin = 1e-6 if dtype is torch.float32 else MARGINS[dtype]
        torch.testing.assert_close(k.double(), exact, rtol=0, atol=margin)


@needs_cpp
def test_quantiles_and_uniformity_of_float64_are_in_it() -> None:
    z = make_rows(40, 7, torch.float64)
    quantiles, (_, uniformity) = (
        row_similarity_quantile(z, 0.7, backend="cpp"), alignment_uniformity(z, z + 1, backend="cpp")
    )  # fmt: skip
    exact = row_similarity_quantile(z, 0.7, backend="reference")
    torch.testing.assert_close(quantiles, exact, rtol=1e-12, atol=0)
    _, exact = alignment_uniformity(z, z + 1, backend="reference")
    torch.testing.assert_close(uniformity, exact, rtol=1e-12, atol=0)


def test_quantile_of_ties(backend: str, device: str) -> None:
    z = torch.eye(4, device=device).repeat(10, 1)  # 30 similarities of 0, then 8 of 1
    for q, k in ((0.5, 0.0), (0.79, 0.5), (0.9, 1.0)):
        assert row_similarity_quantile(z, q, backend=backend).tolist() == [k] * 40
    z = torch.tensor([[1.0], [-1.0]], device=device).repeat(10, 1)  # 10 of -1, then 8 of 1
    for q, k in ((0.01, -math.inf), (0.1, -1.0), (0.5, -1.0), (0.56, 0.0), (0.6, 0.0), (0.62, 1.0)):
        assert row_similarity_quantile(z, q, backend=backend).tolist() == [k] * 20


def test_quantile_between_neighbouring_floats_leaves_the_upper_one_above(
    backend: str, device: str
) -> None:
    z = 1 + 0.006 * make_rows(200, 16, device=device)
    above = []
    k = row_similarity_quantile(z, 0.8, backend=backend)
    for threshold in (k, k.nextafter(torch.full_like(k, -2.0))):
        options = {"histogram_bins": 1, "backend": backend}
        above.append(adaptive_info_nce(z, threshold, **options)[1].positives)
    expected = 198 - 158  # floor(0.8 * 198) of 198 candidates are not above
    fewer = above[0] < expected
    assert (above[0][~fewer] == expected).all()
    assert (above[1][fewer] > expected).all(), "where the two are equal, and only there"
    assert fewer.sum() < 100


def test_quantile_of_not_a_number(backend: str, device: str) -> None:
    z = make_rows(20, 4, device=device)
    z[3, 0] = math.nan
    groups = torch.full((20,), -1, device=device)
    groups[[3, 8]] = 1  # row 8 does not see row 3, nor does its partner 13
    k = row_similarity_quantile(z, 0.5, groups=groups, backend=backend)
    assert k.isnan().tolist() == [i not in (8, 13) for i in range(20)]


@pytest.mark.parametrize("n", [1, 2, 33, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_alignment_and_uniformity(backend, device, n, dtype) -> None:
    x, y = make_rows(2 * n, 5, dtype, device=device).chunk(2)
    result = alignment_uniformity(x, y, backend=backend)
    exact = reference.alignment_uniformity(x.double(), y.double())
    margin = 1e-5 if dtype is torch.float32 else 1e-2
    for value, expected in zip(result, exact, strict=True):
        assert value.dtype is torch.float32 and value.shape == ()
        torch.testing.assert_close(
            value.double(), expected, rtol=margin, atol=margin, equal_nan=True
        )
    assert result[1].isnan() == (n == 1)


def test_no_gradient(backend: str, device: str) -> None:
    z = make_rows(8, 3, device=device).requires_grad_()
    assert not row_similarity_quantile(z, 0.5, backend=backend).requires_grad
    assert not similarity_histogram(z, 3, backend=backend).requires_grad
    assert not any(v.requires_grad for v in alignment_uniformity(z, z, backend=backend))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: similarity_histogram(z, True), "bins: expected an integer from 1 to 4194304, got True"),
        (lambda z: similarity_histogram(z, 0), "bins: expected an integer from 1 to 4194304, got 0"),
        (lambda z: similarity_histogram(z * math.nan, 5), "z: expected finite values"),
        (lambda z: similarity_histogram(z * math.inf, 5), "z: expected finite values"),
        (lambda z: similarity_histogram(z[:3], 5), "z: expected an even number of rows"),
        (lambda z: row_similarity_quantile(z, 1.5), r"q: expected a number in \[0, 1\], got 1.5"),
        (lambda z: row_similarity_quantile(z, math.nan), "q: expected"),
        (lambda z: row_similarity_quantile(z, 0.5, groups=torch.zeros(3).long()), "groups: exp"),
        (lambda z: alignment_uniformity(z, z[:2]), r"y: expected shape \(8, 3\)"),
        (lambda z: alignment_uniformity(z[:, :1], z[:, :1].T), r"y: expected shape \(8, 1\)"),
        (lambda z: alignment_uniformity(z, z.double()), "y: expected .* torch.float32"),
        (lambda z: alignment_uniformity(z[:0], z[:0]), "x: expected a 2-d tensor"),
        (lambda z: row_similarity_quantile(z, 0.5, backend="tpu"), "backend: expected"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(make_rows(8, 3))


def test_an_odd_number_of_rows_has_no_row_of_padding(backend: str, device: str) -> None:
    x = make_rows(254, 5, device=device)[:127]
    (_, uniformity), (_, exact) = (
        alignment_uniformity(x, x, backend=backend), reference.alignment_uniformity(x.double(), x.double())
    )  # fmt: skip
    torch.testing.assert_close(uniformity.double(), exact, rtol=1e-5, atol=1e-5)


def test_opposite_rows_are_counted(backend: str, device: str) -> None:
    """Their cosine may round below -1."""
    x = make_rows(20, 7, device=device)
    z = torch.stack((x, -x), dim=1).flatten(0, 1)
    assert similarity_histogram(z, 4, backend=backend).sum() == 40 * 38


def test_the_share_below_a_quantile_is_taken_in_float64(backend: str, device: str) -> None:
    """0.29 * 100 is 28.999..., and 29 in float32."""
    z = make_rows(30, 5, device=device).repeat(4, 1)[:102] + 1e-3 * make_rows(102, 5, device=device)
    k = row_similarity_quantile(z, 0.29, backend=backend).double()
    s = reference.cosine_similarities(z.double())
    above = reference.candidates(z, None) & (s > k[:, None])
    assert above.sum(dim=1).eq(72).all()
