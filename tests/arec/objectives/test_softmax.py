from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from arec.objectives import softmax


@pytest.mark.parametrize("rows", [1, 64, 200])  # a chunk has 64 rows or a multiple
@pytest.mark.parametrize("logits_per_chunk", [1, 2560, 1 << 21])
@pytest.mark.parametrize("logits_per_block", [1, 40, 1 << 21])
def test_equals_cross_entropy(
    rows: int, logits_per_chunk: int, logits_per_block: int, monkeypatch
) -> None:
    monkeypatch.setitem(softmax._LOGITS_PER_CHUNK, "cpu", logits_per_chunk)
    monkeypatch.setitem(softmax._LOGITS_PER_BLOCK, "cpu", logits_per_block)
    torch.manual_seed(0)
    hidden = torch.randn(rows, 8, dtype=torch.float64, requires_grad=True)
    table = torch.randn(21, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(1, 21, (rows,))
    ours = softmax.full_softmax_loss(hidden, table, targets)
    gradients = torch.autograd.grad(3 * ours, (hidden, table))
    expected = F.cross_entropy(hidden @ table[1:].T, targets - 1)
    torch.testing.assert_close(ours, expected)
    for got, want in zip(gradients, torch.autograd.grad(3 * expected, (hidden, table))):
        torch.testing.assert_close(got, want)


def test_large_logits_do_not_overflow() -> None:
    hidden = torch.full((2, 4), 1e3, requires_grad=True)
    table = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)) * 10
    loss = softmax.full_softmax_loss(hidden, table, torch.tensor([1, 2]))
    loss.backward()
    assert loss.isfinite() and hidden.grad.isfinite().all()


# Of the largest element: two roundings to bfloat16 (2^-9 each), with room for sums of them; float32.
ROUNDED, EXACT = 2**-7, 1e-5


@pytest.mark.parametrize("rows", [6, 200])
@pytest.mark.parametrize("logits_per_chunk", [1, 1 << 21])
@pytest.mark.parametrize("logits_per_block", [40, 1 << 21])
def test_under_autocast_only_the_products_are_rounded(
    rows: int, logits_per_chunk: int, logits_per_block: int, monkeypatch
) -> None:
    monkeypatch.setitem(softmax._LOGITS_PER_NARROW_CHUNK, "cpu", logits_per_chunk)
    monkeypatch.setitem(softmax._LOGITS_PER_BLOCK, "cpu", logits_per_block)
    torch.manual_seed(0)
    # Whole numbers that bfloat16 holds exactly, and so few that it holds their products too.
    hidden = torch.randint(-2, 3, (rows, 8)).float().requires_grad_()
    table = torch.randint(-2, 3, (21, 8)).float().requires_grad_()
    targets = torch.randint(1, 21, (rows,))
    plain = softmax.full_softmax_loss(hidden, table, targets)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = softmax.full_softmax_loss(hidden, table, targets)
    assert mixed.dtype is torch.float32
    torch.testing.assert_close(mixed, plain)
    expected = torch.autograd.grad(plain, (hidden, table))
    for got, want in zip(torch.autograd.grad(mixed, (hidden, table)), expected):
        assert got.dtype is torch.float32
        torch.testing.assert_close(got, want, rtol=0, atol=ROUNDED * want.abs().max().item())


@pytest.mark.parametrize("autocast", [False, True])
def test_narrow_states_get_narrow_gradients(autocast: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randint(-2, 3, (6, 8)).bfloat16().requires_grad_()
    table = torch.randint(-2, 3, (21, 8)).float().requires_grad_()
    targets = torch.randint(1, 21, (6,))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = softmax.full_softmax_loss(hidden, table, targets)
    gradients = torch.autograd.grad(loss, (hidden, table))
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32]
    expected = F.cross_entropy(hidden.float() @ table[1:].T, targets - 1)
    torch.testing.assert_close(loss, expected)
    near = ROUNDED if autocast else EXACT
    for got, want in zip(gradients, torch.autograd.grad(expected, (hidden, table))):
        assert got.dtype is want.dtype
        torch.testing.assert_close(got, want, rtol=0, atol=near * want.abs().max().item())


def test_a_sample_of_all_items_is_the_full_softmax() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    table = torch.randn(21, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([3, 20, 3, 1, 7, 20])
    for count in (16, 1000):  # there are 16 others
        sampled = softmax.item_loss(hidden, table, targets, count)
        full = softmax.item_loss(hidden, table, targets, None)
        torch.testing.assert_close(sampled, full)
        expected = torch.autograd.grad(full, (hidden, table))
        for got, want in zip(torch.autograd.grad(sampled, (hidden, table)), expected):
            torch.testing.assert_close(got, want)


def test_every_item_is_a_target() -> None:
    table = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    states, targets = table[1:], torch.tensor([1, 2, 3])
    sampled = softmax.item_loss(states, table, targets, 7)
    torch.testing.assert_close(sampled, softmax.item_loss(states, table, targets, None))


@pytest.fixture
def few(monkeypatch) -> None:
    """No more items than asked for."""
    monkeypatch.setattr(softmax, "_STEP", 1)


def test_sampled_sums_of_exponentials_are_unbiased(few) -> None:
    torch.manual_seed(0)
    hidden, table = torch.randn(1, 4), torch.randn(41, 4)
    target = torch.tensor([5])
    logit = (hidden @ table[5]).item()

    def total(count: int | None) -> float:
        return math.exp(softmax.item_loss(hidden, table, target, count).item() + logit)

    totals = [total(10) for _ in range(2000)]
    deviation = torch.tensor(totals).std().item() / math.sqrt(len(totals))
    assert abs(sum(totals) / len(totals) - total(None)) < 4 * deviation


def test_what_drawn_items_stand_for_is_not_rounded(few) -> None:
    hidden, table, targets = torch.zeros(1, 4), torch.zeros(2001, 4), torch.tensor([5])
    with torch.autocast("cpu", torch.bfloat16):
        loss = softmax.item_loss(hidden, table, targets, 3)
    assert loss.item() == pytest.approx(math.log(2000), rel=1e-6)


def test_the_products_have_few_different_sizes(monkeypatch) -> None:
    sizes = []

    def counted(hidden, table, targets, log_counts):
        sizes.append(len(table) - 1)
        return hidden.sum()

    monkeypatch.setattr(softmax._ChunkedSoftmax, "apply", counted)
    hidden, table = torch.randn(3, 4), torch.randn(1001, 4)
    for targets in ([1, 2, 3], [1, 1, 1]):
        softmax.item_loss(hidden, table, torch.tensor(targets), 70)
    assert sizes == [128, 128]


def test_only_drawn_items_and_targets_learn(few) -> None:
    torch.manual_seed(0)
    hidden, table = torch.randn(3, 4), torch.randn(41, 4, requires_grad=True)
    targets = torch.tensor([5, 9, 5])
    softmax.item_loss(hidden, table, targets, 10).backward()
    moved = table.grad.ne(0).any(dim=1)
    assert moved.sum() == 12 and moved[targets].all() and not moved[0]


def test_no_targets_at_all_are_no_nan() -> None:
    hidden, table = torch.zeros(0, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss = softmax.full_softmax_loss(hidden, table, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and not table.grad.any()


@pytest.mark.parametrize("sampled_negatives", [None, 5])
def test_of_several_processes_each_has_its_share_of_the_mean(monkeypatch, sampled_negatives) -> None:
    monkeypatch.setattr(softmax.parallel, "share_of_mean", lambda loss, targets: 7 * loss * targets)
    hidden, table, targets = torch.randn(3, 4), torch.randn(9, 4), torch.tensor([1, 2, 3])
    loss = softmax.full_softmax_loss(hidden, table, targets)
    # Of 8 items 3 are targets and all others are drawn.
    torch.testing.assert_close(softmax.item_loss(hidden, table, targets, sampled_negatives), 21 * loss)
