from __future__ import annotations

import math

import pytest
import torch

import arec.objectives.adaptiverec as module
from arec.data.batches import Batch
from arec.models import Encoder
from arec.objectives import AdaptiveRec, DuoRec, SASRec
from arec_kernels import reference

B, L, ITEMS = 6, 5, 12


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def items() -> torch.Tensor:
        return torch.randint(1, ITEMS + 1, (B, L), generator=generator)

    lengths = torch.tensor([5, 4, 3, 2, 1, 5])
    partner_lengths = torch.tensor([1, 2, 3, 4, 5, 5])
    real = torch.arange(L) < lengths[:, None]
    return Batch(
        inputs=items() * real,
        targets=items() * real,
        lengths=lengths,
        partner_inputs=items() * (torch.arange(L) < partner_lengths[:, None]),
        partner_lengths=partner_lengths,
    )


def encoder(dropout: float = 0.0) -> Encoder:
    torch.manual_seed(0)
    return Encoder(ITEMS, max_length=L, hidden_size=16, feed_forward=16, dropout=dropout)


def adaptive(**settings) -> AdaptiveRec:
    objective = AdaptiveRec(encoder(settings.pop("dropout", 0.0)), **settings)
    # Thresholds in the middle of the similarities, so that M⁺ is neither empty nor everything.
    torch.nn.init.constant_(objective.threshold.layers[-1].bias, 0.2)
    return objective


def gradients(objective: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor | None]:
    names, parameters = zip(*objective.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True)))


@pytest.mark.parametrize("views", ["un", "su", "us", "us_x"])
def test_the_op_is_called_once_for_each_pair_with_its_views(views, monkeypatch) -> None:
    calls = []

    def op(z, threshold, **options):
        calls.append((z, threshold))
        return reference.adaptive_info_nce(z, threshold, **options)

    monkeypatch.setattr(module, "adaptive_info_nce", op)
    objective = adaptive(views=views)  # no dropout: h' = h
    data = batch()
    objective(data)
    own = objective.encoder(data.inputs, data.lengths, last_only=True)
    other = objective.encoder(data.partner_inputs, data.partner_lengths, last_only=True)
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


def test_us_x_pairs_the_second_pass_with_the_partner() -> None:
    objective = adaptive(views="us_x", dropout=0.5).train()
    data = batch()
    torch.manual_seed(1)
    anchor = objective.encoder(data.inputs, data.lengths, last_only=True)
    torch.manual_seed(1)
    (z,) = objective.view_pairs(data, anchor=torch.full((B, 16), torch.nan))
    torch.testing.assert_close(z[:B], anchor), "a pass of its own, not the one handed in"
    assert z.isfinite().all()


def test_total_loss_is_the_paper_s() -> None:
    objective = adaptive(lambda_cl=0.3, lambda_reg=0.7, views="su")
    objective.reference.fill_(0.25)
    data = batch()
    loss, logged = objective(data)
    basic, _ = SASRec(objective.encoder)(data)
    (z,) = objective.view_pairs(data)
    k = objective.thresholds(z)
    learn = reference.adaptive_info_nce(z, k)
    regulariser = (k - 0.25).square().sum() / (2 * B)
    torch.testing.assert_close(loss, basic + 0.3 * (learn + 0.7 * regulariser))
    torch.testing.assert_close(logged["L_cl"], learn.detach())
    torch.testing.assert_close(logged["L_reg"], regulariser.detach())
    assert 0 < logged["positives_per_row"] < 2 * B - 2


def test_released_regulariser_stands_outside_lambda_cl() -> None:
    objective = adaptive(lambda_cl=0.3, regulariser="released", views="su")
    objective.reference.fill_(0.25)
    data = batch()
    loss, _ = objective(data)
    basic, _ = SASRec(objective.encoder)(data)
    (z,) = objective.view_pairs(data)
    k = objective.thresholds(z)
    expected = basic + 0.3 * reference.adaptive_info_nce(z, k) + 0.1 * (k - 0.25).norm()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("regulariser", ["paper", "released"])
def test_no_regulariser_in_the_first_epoch_then_the_previous_epoch_s(regulariser) -> None:
    objective = adaptive(regulariser=regulariser, views="su").eval()
    first, second = batch(0), batch(1)
    logged = [objective(first)[1], objective(second)[1]]
    assert all(scalars["L_reg"] == 0 for scalars in logged)

    def similarities(data: Batch) -> torch.Tensor:
        (z,) = objective.view_pairs(data)
        s = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=-1)
        candidate = ~torch.eye(2 * B, dtype=torch.bool).roll(B, 0) & ~torch.eye(2 * B).bool()
        return s[candidate].detach()

    seen = [similarities(data) for data in (first, second)]
    if regulariser == "paper":
        expected = torch.cat(seen).quantile(0.9)
    else:
        expected = torch.stack([s.quantile(0.9) for s in seen]).mean()
    k_stat = objective.end_epoch()["k_stat"]
    assert k_stat == pytest.approx(expected.item(), abs=0.02)
    assert objective(first)[1]["L_reg"] > 0
    # What is counted in this epoch does not change what regularises it.
    assert objective.reference.item() == k_stat
    assert "reference" in objective.state_dict()


def test_epoch_quantile_is_exact_to_a_bin() -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    histogram = torch.histc(values, 2000, -1, 1).long()
    for q in (0.5, 0.9, 0.99):
        got = module._histogram_quantile(histogram, q).item()
        assert got == pytest.approx(values.quantile(q).item(), abs=5e-3)


@pytest.mark.parametrize("encoder_too", [True, False])
def test_where_the_regulariser_s_gradient_goes(encoder_too) -> None:
    objective = adaptive(lambda_reg=1.0, views="su", regularise_encoder=encoder_too)
    data = batch()
    without = gradients(objective, objective(data)[0])
    objective.reference.fill_(-0.9)
    with_it = gradients(objective, objective(data)[0])
    reaches = {
        name: not torch.allclose(with_it[name], without[name])
        for name in with_it
        if with_it[name] is not None and without[name] is not None
    }
    assert reaches["threshold.layers.0.weight"]
    assert reaches["encoder.positions.weight"] is encoder_too


def test_threshold_grad_reaches_the_network_without_a_regulariser() -> None:
    data = batch()
    constant = adaptive(views="su")
    assert not gradients(constant, constant(data)[0])["threshold.layers.2.bias"].any()
    through = adaptive(views="su", threshold_grad=0.1)
    assert gradients(through, through(data)[0])["threshold.layers.2.bias"].any()


def test_same_target_rows_leave_the_negatives() -> None:
    data = batch()
    targets = data.targets.clone()
    targets[torch.arange(B), data.lengths - 1] = 3  # everybody is before the same item
    data = Batch(**{**vars(data), "targets": targets})
    objective = adaptive(views="su", same_target_negatives=False)
    assert objective(data)[1]["L_cl"] == 0, "no negative is left"
    assert adaptive(views="su")(data)[1]["L_cl"] > 0


def test_without_lambda_cl_it_is_sasrec(monkeypatch) -> None:
    monkeypatch.setattr(module, "adaptive_info_nce", lambda *a, **k: pytest.fail("called"))
    objective = adaptive(lambda_cl=0.0)
    torch.testing.assert_close(objective(batch())[0], SASRec(objective.encoder)(batch())[0])


def test_duorec_is_nt_xent_on_cosines() -> None:
    objective = DuoRec(encoder(), views="su", lambda_cl=0.3, temperature=0.5)
    data = batch()
    loss, logged = objective(data)
    (z,) = objective.view_pairs(data)
    s = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=-1) / 0.5
    s.fill_diagonal_(-math.inf)
    nt_xent = torch.nn.functional.cross_entropy(s, torch.arange(2 * B).roll(B))
    torch.testing.assert_close(logged["L_cl"], nt_xent.detach())
    torch.testing.assert_close(loss, SASRec(objective.encoder)(data)[0] + 0.3 * nt_xent)
