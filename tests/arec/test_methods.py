"""Every method and every variant trains and ranks, on small data."""

from __future__ import annotations

import math
import typing

import pytest
from tiny import sequences_of

from arec.config import Config
from arec.data.split import LeaveOneOut
from arec.objectives import _METHODS, AdaptiveRec
from arec.objectives.contrastive import ContrastiveObjective
from arec.scoring import evaluate_model
from arec.trainer import Trainer, training_batches

ROWS = 21  # with 8 in a batch the last one is incomplete


@pytest.fixture(scope="module")
def split() -> LeaveOneOut:
    """Users who walk along a circle of 20 items."""
    walks = [[(user + step) % 20 + 1 for step in range(5 + user % 9)] for user in range(ROWS)]
    return LeaveOneOut(sequences_of(*walks, num_items=20))


def test_settings_know_which_methods_compare_views() -> None:
    """Else `views` would be said to be unused, or an epoch would train before anything failed."""
    names = typing.get_args(Config.model_fields["method"].annotation)
    assert set(names) == set(_METHODS)
    for name, method in _METHODS.items():
        assert issubclass(method, ContrastiveObjective) is Config(method=name).contrastive
        assert issubclass(method, AdaptiveRec) is Config(method=name).adaptive


def test_every_method_is_trained_below() -> None:
    assert {Config(**settings).method for settings in VARIANTS} == set(_METHODS)


VARIANTS = [
    {"method": "sasrec"},
    {"method": "sasrec", "rows": "prefix"},
    {"method": "sasrec", "sampled_negatives": 5},
    {"method": "bert4rec"},
    {"method": "bert4rec", "sampled_negatives": 5},
    {"method": "cl4srec"},
    {"method": "cl4srec", "similarity": "dot"},
    *({"method": "duorec", "views": views} for views in ("un", "su", "us", "us_x")),
    {"method": "duorec", "task": "masked-item", "rows": "prefix"},
    {"method": "duorec", "similarity": "dot", "same_target_negatives": False},
    *({"views": views} for views in ("un", "su", "us", "us_x", "cl4srec")),
    *({"simthres": simthres} for simthres in ("row", "epoch")),
    *({"threshold_network": network} for network in ("row", "flattened")),
    {"lambda_reg": 0.0, "threshold_grad": 0.05},
    {"positives": False},
    {"task": "masked-item", "views": "cl4srec", "sampled_negatives": 5},
    {"rows": "prefix", "regulariser": "released", "denominator": "all"},
    {"precision": "bfloat16"},
    {"precision": "bfloat16", "method": "bert4rec"},
]


@pytest.mark.parametrize(
    "settings", VARIANTS, ids=lambda settings: "-".join(map(str, settings.values()))
)
def test_trains_and_ranks(split, tmp_path, settings) -> None:
    small = {"hidden_size": 8, "feed_forward": 8, "max_length": 6, "batch_size": 8, "epochs": 2}
    trainer = Trainer(
        Config(**small | {"warmup_epochs": 0.0, "weight_decay": 0.0} | settings), split, tmp_path
    )
    before = {name: value.clone() for name, value in trainer.objective.named_parameters()}
    records = trainer.fit()
    assert all(math.isfinite(record["loss"]) for record in records)
    for name, value in trainer.objective.named_parameters():
        assert not value.equal(before[name]), f"{name} was not trained"
    figures = evaluate_model(trainer.objective, split, "test")
    assert 0 <= figures["unfiltered"]["NDCG@10"] <= figures["filtered"]["NDCG@10"] <= 1


def test_random_anchors_are_drawn_for_contrast_only(split: LeaveOneOut) -> None:
    for settings, drawn in [({}, True), ({"lambda_cl": 0}, False), ({"method": "sasrec"}, False)]:
        for batch in training_batches(Config.from_settings(settings), split).epoch(0):
            assert (batch.anchors is not None) is drawn
