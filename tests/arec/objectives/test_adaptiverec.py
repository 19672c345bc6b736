from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

import arec.objectives.adaptiverec as module
from arec.data.batches import Batch
from arec.models import FlattenedThresholdNetwork, ThresholdNetwork
from arec.objectives import AdaptiveRec
from arec_kernels import reference

B = 6


@pytest.fixture
def adaptive(build) -> Callable[..., AdaptiveRec]:
    """Thresholds in the middle of the similarities, so that M⁺ is neither empty nor everything."""

    def adaptive(**settings) -> AdaptiveRec:
        objective = build(method="adaptiverec", **settings)
        if objective.config.simthres == "learnable":
            torch.nn.init.constant_(objective.threshold.layers[-1].bias, 0.2)
        return objective

    return adaptive


def similarities(z: torch.Tensor) -> torch.Tensor:  # (2B, d) -> (2B, 2B - 2) of the candidates
    s = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=-1)
    candidate = ~torch.eye(2 * B, dtype=torch.bool).roll(B, 0) & ~torch.eye(2 * B).bool()
    return s[candidate].view(2 * B, -1).detach()


def gradients(objective: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor | None]:
    names, parameters = zip(*objective.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True)))


@pytest.mark.parametrize("views", ["un", "su", "us", "us_x"])
def test_the_op_is_called_once_for_each_pair_with_its_views(
    adaptive, batch, views, monkeypatch
) -> None:
    calls = []

    def op(z, threshold, **options):
        calls.append((z, threshold))
        return reference.adaptive_info_nce(z, threshold, **options)

    monkeypatch.setattr(module, "adaptive_info_nce", op)
    objective = adaptive(views=views)  # no dropout: h' = h
    objective(batch)
    own = objective.encoder(batch.inputs, batch.lengths, last_only=True)
    other = objective.encoder(batch.partner_inputs, batch.partner_lengths, last_only=True)
    pairs = {
        "un": [(own, own)],
        "su": [(own, other)],
        "us": [(own, own), (own, other)],
        "us_x": [(own, other)],
    }[views]
    assert len(calls) == len(pairs)
    for (z, k), pair in zip(calls, pairs):
        torch.testing.assert_close(z, torch.cat(pair))
        assert k.shape == (B,), "one threshold for both views of a sequence"


def test_views_are_made_of_the_items_up_to_the_anchors(adaptive, batch) -> None:
    anchors = torch.tensor([2, 4, 1, 2, 1, 5])
    cut = batch.inputs * (torch.arange(batch.inputs.shape[1]) < anchors[:, None])
    objective = adaptive(views="un", dropout=0.0)
    handed, view_pairs = [], objective.view_pairs
    objective.view_pairs = lambda batch, anchor: handed.append(anchor) or view_pairs(batch, anchor)
    objective(dataclasses.replace(batch, anchors=anchors))
    expected = objective.encoder(cut, anchors, last_only=True)
    torch.testing.assert_close(handed[0], expected)  # taken from the pass over all positions
    (z,) = view_pairs(dataclasses.replace(batch, anchors=anchors))
    torch.testing.assert_close(z, torch.cat([expected, expected]))


def test_us_x_pairs_the_second_pass_with_the_partner(adaptive, batch) -> None:
    objective = adaptive(views="us_x", dropout=0.5).train()
    torch.manual_seed(1)
    anchor = objective.encoder(batch.inputs, batch.lengths, last_only=True)
    torch.manual_seed(1)
    (z,) = objective.view_pairs(batch, anchor=torch.full((B, 16), torch.nan))
    torch.testing.assert_close(z[:B], anchor)  # a pass of its own, not the one handed in
    assert z.isfinite().all()


def test_total_loss_is_the_paper_s(build, adaptive, batch) -> None:
    objective = adaptive(lambda_cl=0.3, lambda_reg=0.7, views="su")
    objective.reference.fill_(0.25)
    loss, logged = objective(batch)
    basic, _ = build(method="sasrec")(batch)
    (z,) = objective.view_pairs(batch)
    k = objective.thresholds(z)
    learn = reference.adaptive_info_nce(z, k)
    regulariser = (k - 0.25).square().sum() / (2 * B)
    torch.testing.assert_close(loss, basic + 0.3 * (learn + 0.7 * regulariser))
    torch.testing.assert_close(logged["L_cl"], learn.detach())
    torch.testing.assert_close(logged["L_reg"], regulariser.detach())
    assert 0 < logged["positives_per_row"] < 2 * B - 2


def test_the_mask_alone_is_eq_8_and_counts_what_it_masks(adaptive, batch) -> None:
    objective = adaptive(positives=False, views="su", weighting="printed", threshold_grad=0.1)
    loss, logged = objective(batch)
    loss.backward()
    (z,) = objective.view_pairs(batch)
    k = objective.thresholds(z)
    masked = reference.adaptive_info_nce(z, k, positives=False, threshold_grad=0.1)
    torch.testing.assert_close(logged["L_cl"], masked.detach())
    (expected,) = torch.autograd.grad(0.1 * masked, objective.threshold.layers[-1].bias)
    torch.testing.assert_close(objective.threshold.layers[-1].bias.grad, expected)
    s = reference.cosine_similarities(z)
    above = (s > k.repeat(2)[:, None]) & reference.candidates(z, None)
    assert logged["masked_per_row"] == pytest.approx(above.sum().item() / len(z))
    assert logged["masked_per_row"] > 0 and "positives_per_row" not in logged


def test_released_regulariser_stands_outside_lambda_cl(build, adaptive, batch) -> None:
    objective = adaptive(lambda_cl=0.3, lambda_reg=0.2, regulariser="released", views="su")
    objective.reference.fill_(0.25)
    loss, _ = objective(batch)
    basic, _ = build(method="sasrec")(batch)
    (z,) = objective.view_pairs(batch)
    k = objective.thresholds(z)
    expected = basic + 0.3 * reference.adaptive_info_nce(z, k) + 0.2 * (k - 0.25).norm()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("regulariser", ["paper", "released"])
def test_no_regulariser_in_the_first_epoch_then_the_previous_epoch_s(
    adaptive, batch, other_batch, regulariser
) -> None:
    objective = adaptive(regulariser=regulariser, views="su").eval()
    logged = [objective(batch)[1], objective(other_batch)[1]]
    assert all(scalars["L_reg"] == 0 for scalars in logged)
    seen = [similarities(*objective.view_pairs(each)) for each in (batch, other_batch)]
    if regulariser == "paper":
        expected = torch.cat(seen).quantile(0.9)
    else:
        expected = torch.stack([s.quantile(0.9) for s in seen]).mean()
    k_stat = objective.end_epoch()["k_stat"]
    assert k_stat == pytest.approx(expected.item(), abs=0.02)
    assert objective(batch)[1]["L_reg"] > 0
    # What is counted in this epoch does not change what regularises it.
    assert objective.reference.item() == k_stat
    assert "reference" in objective.state_dict()


@pytest.mark.parametrize("regulariser", ["paper", "released"])
def test_the_quantile_is_of_all_pairs_and_the_released_one_a_mean_over_batches(
    adaptive, regulariser
) -> None:
    objective = adaptive(regulariser=regulariser, quantile=0.4)
    torch.manual_seed(0)
    alike, unlike = 1 + 0.01 * torch.randn(2 * B, 16), torch.randn(2 * B, 16)
    for z in (alike, unlike):
        objective.contrast(z, None)
    seen = [similarities(z).flatten() for z in (alike, unlike)]
    of_all, mean = torch.cat(seen).quantile(0.4), torch.stack([s.quantile(0.4) for s in seen]).mean()
    assert mean - of_all > 0.1
    expected = of_all if regulariser == "paper" else mean
    assert objective.end_epoch()["k_stat"] == pytest.approx(expected.item(), abs=0.01)


@pytest.mark.parametrize("regulariser", ["paper", "released"])
def test_a_batch_without_candidates_says_nothing_of_the_epoch(adaptive, batch, regulariser) -> None:
    objective = adaptive(regulariser=regulariser)
    one_row = Batch(
        *(getattr(batch, name)[:1] for name in ("inputs", "targets", "lengths")),
        *(getattr(batch, name)[:1] for name in ("partner_inputs", "partner_lengths")),
    )
    objective(batch)
    alone = objective.end_epoch()["k_stat"]
    objective(batch)
    objective(one_row)
    assert objective.end_epoch()["k_stat"] == alone
    objective(one_row)
    assert objective.end_epoch()["k_stat"] == alone, "the last one that there was"


def test_epoch_quantile_is_the_edge_above_it() -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    histogram = torch.histc(values, 2000, -1, 1).long()
    for q in (0.5, 0.9, 0.99):
        edge = module._histogram_quantile(histogram, q).item()
        assert (values < edge + 1e-6).sum() >= q * 1000 > (values < edge - 1e-3 - 1e-6).sum()


@pytest.mark.parametrize("encoder_too", [True, False])
def test_where_the_regulariser_s_gradient_goes(adaptive, batch, encoder_too) -> None:
    objective = adaptive(lambda_reg=1.0, views="su", regularise_encoder=encoder_too)
    without = gradients(objective, objective(batch)[0])
    objective.reference.fill_(-0.9)
    with_it = gradients(objective, objective(batch)[0])
    reaches = {
        name: not torch.allclose(with_it[name], without[name])
        for name in with_it
        if with_it[name] is not None and without[name] is not None
    }
    assert reaches["threshold.layers.0.weight"]
    assert reaches["encoder.positions.weight"] is encoder_too


@pytest.mark.parametrize("network", ["context", "row", "flattened"])
def test_what_trains_the_threshold_network(adaptive, batch, network) -> None:
    def reached(objective: AdaptiveRec) -> list[bool]:
        loss, _ = objective(batch)
        return [
            bool(gradient.any())
            for name, gradient in gradients(objective, loss).items()
            if name.startswith("threshold.")
        ]

    settings = {"views": "su", "threshold_network": network, "batch_size": B + 1}
    kind = type(adaptive(**settings).threshold)
    assert kind is (FlattenedThresholdNetwork if network == "flattened" else ThresholdNetwork)
    own = adaptive(**settings)
    z = torch.randn(2 * B, own.encoder.item_table.shape[1])
    other = z.clone()
    other[1:] += 1
    of_batch = own.thresholds(z)[0] != own.thresholds(other)[0]
    assert of_batch == (network != "row"), "the others of the batch are its context"
    assert not any(reached(adaptive(**settings))), "the mask is a constant"
    assert all(reached(adaptive(**settings, threshold_grad=0.1)))
    regularised = adaptive(**settings)
    regularised.reference.fill_(-0.9)
    assert all(reached(regularised))
    regularised = adaptive(**settings, lambda_reg=0.0)
    regularised.reference.fill_(-0.9)
    assert not any(reached(regularised)), "learnable without regularisation"


def test_statistical_threshold_of_each_row(build, adaptive, batch) -> None:
    objective = adaptive(views="su", simthres="row", quantile=0.75, lambda_cl=0.3)
    loss, logged = objective(batch)
    (z,) = objective.view_pairs(batch)
    s = similarities(z).sort(dim=1).values
    k = (s[:, 6] + s[:, 7]) / 2  # ⌊0.75 · 10⌋ = 7 below
    expected = build(method="sasrec")(batch)[0] + 0.3 * reference.adaptive_info_nce(z, k)
    torch.testing.assert_close(loss, expected)
    assert logged["positives_per_row"] == 3
    assert "L_reg" not in logged and not hasattr(objective, "threshold")
    torch.testing.assert_close(logged["k_mean"], k.mean())
    torch.testing.assert_close(logged["k_std"], k.std(correction=0))


def test_regularisers_are_of_learnable_thresholds(adaptive, batch, other_batch) -> None:
    logged = []
    for regulariser in ("paper", "released"):
        objective = adaptive(views="su", simthres="row", regulariser=regulariser)
        for each in (batch, other_batch):
            objective(each)
        logged.append(objective.end_epoch()["k_stat"])
    assert logged[0] == logged[1]


def test_rows_of_known_targets_are_not_in_a_row_s_quantile(adaptive, batch_before) -> None:
    batch = batch_before([3, 3, 1, 2, 4, 5])
    objective = adaptive(views="su", simthres="row", quantile=0.75, same_target_negatives=False)
    groups = objective.groups(batch)
    (z,) = objective.view_pairs(batch)
    s = similarities(z)
    for row in (0, 1, 6, 7):  # both views of the other of the first two are at columns 0 and 5
        s[row, [0, 5]] = math.inf
    k = s.sort(dim=1).values[[0, 1, 6, 7], 5:7].mean(dim=1)  # ⌊0.75 · 8⌋ = 6 below
    torch.testing.assert_close(objective.thresholds(z, groups)[[0, 1, 6, 7]], k)


def test_statistical_threshold_of_the_previous_epoch(adaptive, batch, other_batch) -> None:
    objective = adaptive(views="su", simthres="epoch")
    first = objective(batch)[1]
    assert first["positives_per_row"] == 0, "no epoch before the first"
    assert first["k_mean"] == pytest.approx(1.05), "JSON has no infinity"
    assert first["k_std"] == pytest.approx(0, abs=1e-6)
    k = objective.end_epoch()["k_stat"]
    _, logged = objective(other_batch)
    (z,) = objective.view_pairs(other_batch)
    torch.testing.assert_close(logged["L_cl"], reference.adaptive_info_nce(z, k).detach())
    assert logged["k_mean"] == pytest.approx(k)


def test_same_target_rows_leave_the_negatives(adaptive, batch_before) -> None:
    batch = batch_before([3] * B)  # everybody is before the same item
    objective = adaptive(views="su", same_target_negatives=False)
    assert objective(batch)[1]["L_cl"] == 0, "no negative is left"
    assert adaptive(views="su")(batch)[1]["L_cl"] > 0


def test_without_lambda_cl_it_is_sasrec(build, adaptive, batch, monkeypatch) -> None:
    monkeypatch.setattr(module, "adaptive_info_nce", lambda *a, **k: pytest.fail("called"))
    objective = adaptive(lambda_cl=0.0)
    torch.testing.assert_close(objective(batch)[0], build(method="sasrec")(batch)[0])


def test_an_epoch_forgets_the_one_before(adaptive, batch, other_batch) -> None:
    objective, fresh = adaptive(), adaptive()
    objective(batch)
    objective.end_epoch()
    for each in (objective, fresh):
        each(other_batch)
    assert objective.end_epoch() == fresh.end_epoch()


def test_settings_of_the_loss_mean_what_the_op_s_do(adaptive, batch) -> None:
    settings = {
        "partner_weight": 0.2, "temperature": 0.5, "denominator": "all", "weighting": "printed"
    }  # fmt: skip
    objective = adaptive(views="su", **settings)
    _, logged = objective(batch)
    (z,) = objective.view_pairs(batch)
    expected = reference.adaptive_info_nce(z, objective.thresholds(z), **settings)
    torch.testing.assert_close(logged["L_cl"], expected.detach())


def test_a_learnable_threshold_is_that_of_the_first_view(adaptive, batch) -> None:
    objective = adaptive(views="su")
    (z,) = objective.view_pairs(batch)
    torch.testing.assert_close(objective.thresholds(z), objective.threshold(z[:B]))
