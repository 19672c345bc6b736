"""What is logged of the views: measured as defined, and without an effect on training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import arec.trainer
from arec.alignment import view_alignment
from arec.config import Config
from arec.data import load
from arec.data.split import LeaveOneOut
from arec.errors import RunError
from arec.trainer import Trainer
from arec_kernels import reference

SMALL = {"hidden_size": 8, "feed_forward": 8, "max_length": 8, "epochs": 1}


@pytest.fixture(scope="module")
def split() -> LeaveOneOut:
    """The first 150 users of the built-in data."""
    sequences = load("builtin")
    users = 150
    end = sequences.offsets[users]
    return LeaveOneOut(
        dataclasses.replace(
            sequences,
            items=sequences.items[:end],
            offsets=sequences.offsets[: users + 1],
            user_ids=sequences.user_ids[:users],
        )
    )


def trainer(split: LeaveOneOut, folder: Path, **settings) -> Trainer:
    return Trainer(Config(**SMALL | settings), split, folder)


@pytest.mark.parametrize("views", ["su", "us"])
def test_equals_the_oracle_on_the_views(split, tmp_path, views) -> None:
    subject = trainer(split, tmp_path, method="duorec", views=views, dropout=0.0)
    logged = view_alignment(subject.objective, subject.batches.sample(100))
    assert logged == view_alignment(subject.objective.eval(), subject.batches.sample(100))
    assert not subject.objective.training, "as it was, for what is computed next"
    (batch,) = subject.batches.sample(100)
    pairs = subject.objective.view_pairs(batch)
    figures = [reference.alignment_uniformity(z[:100], z[100:]) for z in pairs]
    expected = torch.tensor(figures).mean(dim=0).tolist()
    assert [logged["alignment"], logged["uniformity"]] == pytest.approx(expected, abs=1e-5)


def test_views_differ_by_dropout_and_every_call_draws_the_same(split, tmp_path) -> None:
    subject = trainer(split, tmp_path, method="duorec", views="un", dropout=0.5)
    state = torch.get_rng_state()
    first = view_alignment(subject.objective, subject.batches.sample(100))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert view_alignment(subject.objective, subject.batches.sample(100)) == first
    assert first["alignment"] > 0.01


@pytest.mark.parametrize("method", ["cl4srec", "duorec", "adaptiverec"])
def test_training_does_not_notice(split, tmp_path, monkeypatch, method) -> None:
    measured = trainer(split, tmp_path / "measured", method=method, epochs=2)
    records = measured.fit()
    assert all({"alignment", "uniformity", "similarity_histogram"} <= set(r) for r in records)
    monkeypatch.setattr(arec.trainer, "view_alignment", lambda *_: {})
    plain = trainer(split, tmp_path / "plain", method=method, epochs=2)
    plain.fit()
    for name, value in plain.objective.state_dict().items():
        assert torch.equal(value, measured.objective.state_dict()[name]), name


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "cl4srec"},
        {"method": "duorec", "views": "us"},
        {"method": "duorec", "views": "un", "similarity": "dot"},
        {"method": "adaptiverec", "views": "un"},
    ],
    ids=lambda settings: settings["method"],
)
def test_every_candidate_pair_of_the_epoch_is_counted_once(split, tmp_path, settings) -> None:
    subject = trainer(split, tmp_path, batch_size=32, **settings)
    (record,) = subject.fit()
    sizes = [2 * len(batch.lengths) for batch in subject.batches.epoch(0)]
    pairs = 1 + (settings.get("views") == "us")
    assert sum(record["similarity_histogram"]) == pairs * sum(n * (n - 2) for n in sizes)
    assert len(record["similarity_histogram"]) == 200


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_broken_model_is_the_loss_s_to_report(split, tmp_path, similarity) -> None:
    subject = trainer(split, tmp_path, method="duorec", similarity=similarity)
    with torch.no_grad():
        subject.objective.encoder.items.weight.fill_(torch.nan)
    with pytest.raises(RunError, match="epoch 1: the training loss is nan"):
        subject.fit()


def test_without_contrast_nothing_is_measured(split, tmp_path) -> None:
    for settings in ({"method": "sasrec"}, {"method": "adaptiverec", "lambda_cl": 0.0}):
        (record,) = trainer(split, tmp_path, **settings).fit()
        measured = {"alignment", "uniformity", "similarity_histogram", "false_negatives"}
        assert not measured & set(record)
