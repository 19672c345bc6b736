"""Every setting reaches the training: with another value it comes out otherwise."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from tiny import planted

from arec.config import Config
from arec.trainer import Trainer

SMALL = {
    "hidden_size": 8, "feed_forward": 8, "max_length": 8, "batch_size": 16, "epochs": 2,
    "warmup_epochs": 0.0,
}  # fmt: skip
ROW = {"simthres": "row", "quantile": 0.7}  # thresholds with pairs above them from the start
EPOCH = {"simthres": "epoch", "quantile": 0.7}
DUOREC = {"method": "duorec"}
MASKED = {"task": "masked-item"}

# What else is set, and the setting that changes.
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"method": "duorec"}),
    ({}, {"hidden_size": 16}),
    ({}, {"layers": 1}),
    ({}, {"heads": 1}),
    ({}, {"feed_forward": 16}),
    ({}, {"dropout": 0.5}),
    ({}, {"attention_dropout": 0.5}),
    ({}, {"norm_first": False}),
    ({}, {"initialisation": "normal"}),
    ({}, {"scale_embeddings": False}),
    ({}, {"max_length": 5}),
    ({"batch_size": 256}, {"rows": "prefix"}),
    ({}, {"task": "masked-item"}),
    *((masked, {"mask_rate": 0.5}) for masked in ({"method": "bert4rec"}, MASKED)),
    *((masked, {"last_mask_rate": 0.9}) for masked in ({"method": "bert4rec"}, MASKED)),
    *(({"method": method}, {"sampled_negatives": 5}) for method in ("sasrec", "bert4rec", "duorec")),
    (MASKED, {"sampled_negatives": 5}),
    ({}, {"epochs": 3}),
    ({}, {"batch_size": 32}),
    ({}, {"learning_rate": 1e-3}),
    ({}, {"weight_decay": 0.5}),
    ({}, {"warmup_epochs": 1.0}),
    ({}, {"schedule": "constant"}),
    ({}, {"random_windows": 1.0}),
    ({}, {"gradient_clip": 1e-3}),
    ({}, {"lowest_rate": 0.5}),
    ({"epochs": 4, "learning_rate": 1e-30}, {"patience": 1}),
    ({}, {"validation_users": 7}),
    ({}, {"filter_history": False}),
    ({}, {"seed": 1}),
    *((method, {"views": "un"}) for method in ({}, DUOREC)),
    ({}, {"anchors": "last"}),
    *(({"method": "cl4srec"}, {name: 0.9}) for name in ("crop_ratio", "mask_ratio", "reorder_ratio")),
    *(({"method": method}, {"similarity": "dot"}) for method in ("cl4srec", "duorec")),
    *(({"method": method}, {"lambda_cl": 0.5}) for method in ("cl4srec", "duorec", "adaptiverec")),
    *(
        (contrast, {"temperature": 0.2})
        for contrast in (DUOREC, DUOREC | {"similarity": "dot"}, {}, ROW)
    ),
    *(
        (contrast, {"same_target_negatives": False})
        for contrast in (DUOREC, DUOREC | {"similarity": "dot"}, {}, ROW)
    ),
    ({}, {"simthres": "epoch"}),
    ({}, {"threshold_network": "row"}),
    ({}, {"threshold_network": "flattened"}),
    (ROW, {"positives": False}),
    (ROW, {"partner_weight": 0.2}),
    (ROW, {"denominator": "all"}),
    (ROW, {"weighting": "printed"}),
    ({}, {"threshold_grad": 0.5}),
    *((thresholds, {"quantile": 0.5}) for thresholds in ({}, ROW, EPOCH)),
    *((thresholds, {"regulariser": "released"}) for thresholds in ({}, EPOCH)),
    ({}, {"lambda_reg": 10.0}),
    ({}, {"regularise_encoder": False}),
]
# Of the data's way in and of the machine, which have tests of their own.
ELSEWHERE = {
    "dataset", "data_dir", "user_column", "item_column", "time_column", "k_core", "device",
    "precision",
}  # fmt: skip


def outcome(folder: Path, settings: dict[str, Any]) -> str:
    """Logged figures, what chooses the checkpoint, and the weights after the last epoch."""
    trainer = Trainer(Config(**SMALL | settings), planted(), folder)
    records = [
        {name: value for name, value in record.items() if "seconds" not in name}
        for record in trainer.fit()
    ]
    chosen = [trainer._validation(record["epoch"]) for record in records]
    weights = [weight.tolist() for weight in trainer.objective.parameters()]
    return json.dumps([records, chosen, weights])


@functools.cache
def outcome_of(*settings: tuple[str, Any]) -> str:
    """`outcome`, once for all that compare with it."""
    with TemporaryDirectory() as folder:
        return outcome(Path(folder), dict(settings))


def said(setting: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in setting.items())


@pytest.mark.parametrize(
    ("others", "change"), CASES, ids=[f"{said(a)}-to-{said(b)}".lstrip("-") for a, b in CASES]
)
def test_a_setting_changes_the_training(tmp_path, others: dict, change: dict) -> None:
    assert outcome_of(*others.items()) != outcome(tmp_path, others | change)


def test_every_setting_is_tried() -> None:
    tried = {name for _, change in CASES for name in change}
    assert not tried & ELSEWHERE
    assert tried | ELSEWHERE == Config.model_fields.keys()


@pytest.mark.parametrize("settings", [{}, ROW, EPOCH, MASKED, DUOREC, {"method": "cl4srec"}], ids=said)
def test_the_same_settings_come_out_the_same(tmp_path, settings: dict) -> None:
    """Or the others would prove nothing."""
    assert outcome(tmp_path / "a", settings) == outcome(tmp_path / "b", settings)
