from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from arec.objectives import contrastive
from arec.objectives.bert4rec import masked_states


@pytest.fixture
def counted(monkeypatch) -> list:
    """Calls of the op by the methods that use NT-Xent."""
    calls, op = [], contrastive.adaptive_info_nce

    def adaptive_info_nce(*arguments, **options):
        calls.append(arguments)
        return op(*arguments, **options)

    monkeypatch.setattr(contrastive, "adaptive_info_nce", adaptive_info_nce)
    return calls


@pytest.mark.parametrize("same_target_negatives", [True, False])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_duorec_is_nt_xent(
    build, batch_before, counted, similarity, same_target_negatives
) -> None:
    batch = batch_before([3, 3, 1, 2, 4, 5])
    objective = build(
        method="duorec", views="su", similarity=similarity, lambda_cl=0.3, temperature=0.5,
        same_target_negatives=same_target_negatives,
    )  # fmt: skip
    loss, logged = objective(batch)
    assert len(counted) == (similarity == "cosine"), "no InfoNCE outside the op but on dot products"
    (z,) = objective.view_pairs(batch)
    x = F.normalize(z) if similarity == "cosine" else z
    logits = (x @ x.T / 0.5).fill_diagonal_(-math.inf)
    if not same_target_negatives:
        for i, j in [(0, 1), (0, 7), (1, 6), (6, 7)]:  # both views of the first two sequences
            logits[i, j] = logits[j, i] = -math.inf
    expected = F.cross_entropy(logits, torch.arange(12).roll(6))
    torch.testing.assert_close(logged["L_cl"], expected.detach())
    torch.testing.assert_close(loss, build(method="sasrec")(batch)[0] + 0.3 * expected)


@pytest.mark.parametrize("method", ["cl4srec", "duorec", "adaptiverec"])
def test_the_contrast_stays_float32_in_mixed_precision(build, batch, monkeypatch, method) -> None:
    objective = build(method=method)
    contrast, seen = objective.contrast, []

    def recorded(z, *rest, **options):
        seen.append((z.dtype, torch.is_autocast_enabled("cpu")))
        return contrast(z, *rest, **options)

    monkeypatch.setattr(objective, "contrast", recorded)
    with torch.autocast("cpu", torch.bfloat16):
        objective(batch)
    assert seen == [(torch.float32, False)]


def test_losses_of_two_pairs_are_logged_as_they_add_up(build, batch) -> None:
    objective = build(method="adaptiverec", views="us", lambda_cl=0.3, lambda_reg=0.2)
    objective.reference.fill_(0.1)
    loss, logged = objective(batch)
    expected = logged["L_basic"] + 0.3 * (logged["L_cl"] + 0.2 * logged["L_reg"])
    torch.testing.assert_close(loss.detach(), expected)
    assert -1 <= logged["k_mean"] <= 1.05


@pytest.mark.parametrize("method", ["cl4srec", "adaptiverec"])
def test_cl4srec_s_views_are_features_of_augmented_sequences(
    build, batch, monkeypatch, method
) -> None:
    def two_views(items, lengths, **options):
        assert options == {
            "crop_ratio": 0.5, "mask_ratio": 0.25, "reorder_ratio": 1.0, "mask_token": 13
        }  # fmt: skip
        return [(items.flip(0), lengths.flip(0)), (items, lengths)]

    monkeypatch.setattr(contrastive, "two_views", two_views)
    objective = build(
        method=method, views="cl4srec", crop_ratio=0.5, mask_ratio=0.25, reorder_ratio=1.0
    )
    batch = replace(batch, anchors=torch.tensor([2, 4, 1, 2, 1, 5]))
    (z,) = objective.view_pairs(batch)
    h = objective.encoder(batch.anchor_inputs, batch.anchor_lengths, last_only=True)
    torch.testing.assert_close(z, torch.cat([h.flip(0), h]))
    assert objective.score(batch.inputs, batch.lengths).shape == (6, 13), "no score for the mask"


def test_masked_item_task_compares_masks_after_the_last_item(build, batch) -> None:
    objective = build(method="duorec", views="su", task="masked-item", mask_rate=0.5)
    torch.manual_seed(1)
    loss, logged = objective(batch)
    torch.manual_seed(1)
    states, items = masked_states(objective.encoder, batch, objective.config)
    basic = F.cross_entropy(states @ objective.encoder.item_table[1:].T, items - 1)
    torch.testing.assert_close(logged["L_basic"], basic.detach())
    torch.testing.assert_close(loss.detach(), logged["L_basic"] + 0.1 * logged["L_cl"])
    (z,) = objective.view_pairs(batch)
    row = batch.partner_inputs[1:2, :2]  # a sequence of two items
    with_mask = torch.cat([row, torch.tensor([[13]])], dim=1)
    expected = objective.encoder(with_mask, torch.tensor([3]))[:, -1]
    torch.testing.assert_close(z[7:8], expected)


def test_known_targets_are_those_after_the_anchors(build, batch) -> None:
    batch = replace(batch, anchors=torch.tensor([2, 4, 1, 2, 1, 5]))
    objective = build(method="duorec", same_target_negatives=False)
    after = batch.targets[range(6), batch.anchors - 1]
    assert objective.groups(batch).tolist() == after.tolist()


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_known_targets_are_not_counted_as_similarities(build, batch_before, similarity) -> None:
    objective = build(method="duorec", similarity=similarity, same_target_negatives=False)
    objective(batch_before([3, 3, 1, 2, 4, 5]))
    assert objective.histogram.sum() == 12 * 10 - 8


def test_what_is_measured_of_views_depends_on_the_seed(build, batch) -> None:
    def measured(seed: int) -> torch.Tensor:
        objective = build(method="duorec", views="un", dropout=0.5, seed=seed)
        with objective.same_chance():
            return objective.view_pairs(batch)[0]

    assert torch.equal(measured(1), measured(1)) and not torch.equal(measured(1), measured(2))
