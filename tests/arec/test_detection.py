from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from arec.config import Config
from arec.data.batches import Batch
from arec.detection import false_negative_detection, simthres_spread
from arec.models import Encoder
from arec.objectives import AdaptiveRec
from arec_kernels import row_similarity_quantile

SIZE, LENGTH = 10, 4


def make_objective(views: str = "su", **settings) -> AdaptiveRec:
    torch.manual_seed(0)
    encoder = Encoder(9, max_length=LENGTH, hidden_size=8, feed_forward=8, dropout=0.5)
    objective = AdaptiveRec(encoder, Config(views=views, **settings)).train()
    torch.nn.init.constant_(objective.threshold.layers[-1].bias, 0.3)
    return objective


def make_batch(rows: int) -> Batch:
    full = torch.full((rows,), LENGTH)
    inputs, partners = torch.randint(1, 10, (2, rows, LENGTH))
    intents = torch.randint(0, 3, (2 * rows,))
    return Batch(inputs, inputs, full, partners, full, intents)


@pytest.mark.parametrize("same_target_negatives", [True, False])
@pytest.mark.parametrize("views", ["su", "us"])
def test_counts_are_those_of_the_pairs(views, same_target_negatives) -> None:
    objective = make_objective(views, same_target_negatives=same_target_negatives)
    batches = [make_batch(SIZE), make_batch(1)]  # the second has no candidates at all
    # Of 3 intents the last with one target, and the first with the next: two groups.
    batches[0].targets[:2, -1], batches[0].intents[:2] = torch.tensor([[1, 2], [2, 0]])
    found = false_negative_detection(objective, batches)
    assert found == false_negative_detection(objective.eval(), batches)
    assert not objective.training, "as it was, for what is computed next"

    objective.train()
    partner = torch.eye(2 * SIZE, dtype=torch.bool).roll(SIZE, 0)
    targets = batches[0].anchor_targets.repeat(2)
    known = targets[:, None] == targets
    assert (known & ~partner).sum() > 2 * SIZE, "or nothing would be left out"
    candidate = ~partner & ~torch.eye(2 * SIZE).bool()
    if not same_target_negatives:
        candidate &= ~known
    intents = {"un": batches[0].intents[:SIZE].repeat(2), "su": batches[0].intents}
    counts = torch.zeros(4)
    with objective.same_chance():
        pairs = objective.view_pairs(batches[0])
    for z, pair in zip(pairs, ("un", "su") if views == "us" else (views,)):
        s = F.cosine_similarity(z[:, None], z[None], dim=-1)
        selected = (s > objective.thresholds(z).repeat(2)[:, None]) & candidate
        true = (intents[pair][:, None] == intents[pair]) & candidate
        counts += torch.stack([x.sum() for x in (selected & true, selected, true, candidate)])
    both, selected, true, candidates = counts.tolist()
    assert 0 < both < selected < candidates
    assert found["precision"] == pytest.approx(both / selected)
    assert found["recall"] == pytest.approx(both / true)
    assert found["base_rate"] == pytest.approx(true / candidates)
    assert found["selected"] == pytest.approx(selected / candidates)


def test_spread_is_that_of_k_and_of_the_rows_own_quantiles() -> None:
    objective = make_objective(quantile=0.7)
    batches = [make_batch(SIZE), make_batch(1)]  # a pair alone has no quantile
    found = simthres_spread(objective, batches)
    assert objective.training, "as it was"

    objective.eval()
    (z,) = objective.view_pairs(batches[0])
    k = objective.thresholds(z).repeat(2)
    s = F.cosine_similarity(z[:, None], z[None], dim=-1)
    candidate = ~torch.eye(2 * SIZE, dtype=torch.bool).roll(SIZE, 0) & ~torch.eye(2 * SIZE).bool()
    ordered = s[candidate].view(2 * SIZE, -1).sort(dim=1).values  # 18 each; 12 are below
    quantile = ordered[:, 11:13].mean(dim=1)
    expected = torch.stack([k, quantile]).corrcoef()[0, 1].item()
    assert found["mean"] == pytest.approx(k.mean().item())
    assert found["std"] == pytest.approx(k.std(correction=0).item(), rel=1e-4)
    assert found["quantile_std"] == pytest.approx(quantile.std(correction=0).item(), rel=1e-4)
    assert found["correlation"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("of", [1, 2 * SIZE])
def test_spread_of_thresholds_of_all_rows_and_of_each(monkeypatch, of) -> None:
    """As a method of one's own may have them."""
    objective = make_objective()
    given = torch.linspace(0, 1, of) if of > 1 else torch.tensor(0.5)
    monkeypatch.setattr(objective, "thresholds", lambda z, groups=None: given)
    found = simthres_spread(objective, [make_batch(SIZE)])
    assert found["mean"] == pytest.approx(0.5)
    assert found["std"] == pytest.approx(given.std(correction=0).item())


def test_rows_of_known_targets_are_no_part_of_the_spread() -> None:
    objective = make_objective(quantile=0.7, same_target_negatives=False).eval()
    batch = make_batch(SIZE)
    found = simthres_spread(objective, [batch])
    (z,) = objective.view_pairs(batch)
    quantile = row_similarity_quantile(z, 0.7, groups=batch.anchor_targets)
    assert found["quantile_std"] == pytest.approx(quantile.std(correction=0).item())


@pytest.mark.parametrize("measure", [false_negative_detection, simthres_spread])
def test_random_views_are_the_same_at_every_call_and_leave_the_training_alone(measure) -> None:
    torch.manual_seed(0)
    encoder = Encoder(9, max_length=LENGTH, hidden_size=8, feed_forward=8, with_mask=True)
    objective = AdaptiveRec(encoder, Config(views="cl4srec"))
    torch.nn.init.constant_(objective.threshold.layers[-1].bias, 0.3)
    batch = make_batch(SIZE)
    before = torch.get_rng_state()
    first, second = measure(objective, [batch]), measure(objective, [batch])
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)


def test_a_constant_k_correlates_with_nothing() -> None:
    objective = make_objective()
    torch.nn.init.zeros_(objective.threshold.layers[-1].weight)
    assert simthres_spread(objective, [make_batch(SIZE)])["correlation"] is None


def test_rows_without_candidates_have_no_spread() -> None:
    assert simthres_spread(make_objective(), [make_batch(1)]) is None
