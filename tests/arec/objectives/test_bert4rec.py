from __future__ import annotations

import dataclasses

import pytest
import torch

from arec.objectives import bert4rec


def record_inputs(objective, monkeypatch) -> list[torch.Tensor]:
    """What the encoder is given from now on; its states become the items themselves."""
    seen = []
    monkeypatch.setattr(
        objective.encoder, "forward",
        lambda items, lengths: seen.append(items) or items[..., None].float().expand(-1, -1, 16),
    )  # fmt: skip
    return seen


@pytest.mark.parametrize("rate", [0.2, 0.7])
def test_items_are_masked_at_the_rate_and_only_they_are_predicted(
    build, batch, monkeypatch, rate
) -> None:
    objective = build(method="bert4rec", mask_rate=rate, last_mask_rate=0)
    seen = record_inputs(objective, monkeypatch)
    torch.manual_seed(0)
    predicted = [
        bert4rec.masked_states(objective.encoder, batch, objective.config) for _ in range(400)
    ]
    masked = torch.stack(seen) == 13
    count = int(batch.lengths.sum()) + 6  # the inputs and one target a row
    assert masked.float().sum() / (400 * count) == pytest.approx(rate, rel=0.05)
    last = masked[:, range(6), batch.lengths].float().mean()
    assert last == pytest.approx(rate, rel=0.1), "the last item like any other"
    for items, (hidden, targets) in zip(seen, predicted):
        assert (hidden == 13).all() and len(targets) == (items == 13).sum()
        assert ((targets >= 1) & (targets <= 12)).all()


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_the_last_item_alone_is_masked_in_a_share_of_rows(build, batch, monkeypatch, rate) -> None:
    objective = build(method="bert4rec", mask_rate=1e-9, last_mask_rate=rate)
    seen = record_inputs(objective, monkeypatch)
    torch.manual_seed(0)
    for _ in range(400):
        objective(batch)
    masked = torch.stack(seen) == 13
    last = masked[:, range(6), batch.lengths]
    assert masked.sum() == last.sum(), "no other item"
    assert last.float().mean() == pytest.approx(rate, rel=0.1)


def with_biases(objective) -> torch.Tensor:
    """Biases that matter, as after training."""
    with torch.no_grad():
        return objective.item_biases.copy_(torch.linspace(-3, 3, 13))


def test_targets_are_the_masked_items(build, batch) -> None:
    whole = torch.cat([batch.inputs, torch.zeros(6, 1, dtype=torch.int64)], dim=1)
    whole[range(6), batch.lengths] = batch.anchor_targets
    objective = build(method="bert4rec", mask_rate=0.5, last_mask_rate=0)
    biases = with_biases(objective)
    torch.manual_seed(3)
    loss, _ = objective(batch)
    torch.manual_seed(3)
    masked = (torch.rand(6, 6) < 0.5) & (whole > 0)
    states = objective.encoder(whole.masked_fill(masked, 13), batch.lengths + 1)[masked]
    logits = objective.output(states) @ objective.encoder.item_table[1:].T + biases[1:]
    expected = torch.nn.functional.cross_entropy(logits, whole[masked] - 1)
    torch.testing.assert_close(loss, expected)
    for parameter in (objective.item_biases, objective.output[0].weight):
        (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        (wanted,) = torch.autograd.grad(expected, parameter, retain_graph=True)
        torch.testing.assert_close(gradient, wanted)


def test_ranking_asks_for_a_mask_after_the_last_item(build, batch) -> None:
    objective = build(method="bert4rec").eval()
    biases = with_biases(objective)
    scores = objective.score(batch.inputs, batch.lengths)  # the longest fills max_length
    alone = torch.cat([batch.inputs[3:4, :2], torch.tensor([[13]])], dim=1)
    state = objective.output(objective.encoder(alone, torch.tensor([3]))[:, 2])
    torch.testing.assert_close(scores[3:4], state @ objective.encoder.item_table.T + biases)
    assert scores.shape == (6, 13)


def test_rows_of_prefixes_give_the_same_sequences(build, batch) -> None:
    objective = build(method="bert4rec", mask_rate=0.5)
    losses = []
    for targets in (batch.targets, batch.anchor_targets):
        torch.manual_seed(0)
        losses.append(objective(dataclasses.replace(batch, targets=targets))[0])
    assert losses[0] == losses[1] > 0


def test_nothing_masked_is_no_error(build, batch) -> None:
    loss, _ = build(method="bert4rec", mask_rate=1e-9, last_mask_rate=0)(batch)
    loss.backward()
    assert loss == 0


def test_each_row_has_a_chance_of_its_own_that_its_last_item_alone_is_masked(
    build, batch, monkeypatch
) -> None:
    objective = build(method="bert4rec", mask_rate=1 - 1e-9, last_mask_rate=0.5)
    seen = record_inputs(objective, monkeypatch)
    torch.manual_seed(0)
    objective(batch)
    masked = (seen[0] == 13).sum(dim=1)
    alone = masked == 1
    assert (alone | (masked == batch.lengths + 1)).all(), "either one item or all"
    assert 0 < alone.sum() < 6


def test_the_output_layer_is_that_of_the_paper_normalised(build) -> None:
    output, x = build(method="bert4rec").output, torch.randn(4, 16)
    expected = torch.nn.functional.layer_norm(torch.nn.functional.gelu(output[0](x)), (16,))
    torch.testing.assert_close(output(x), expected)
