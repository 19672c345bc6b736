"""What is trained: one file a method, all behind :class:`Objective`."""

from __future__ import annotations

from arec.config import Config
from arec.models import Encoder
from arec.objectives.adaptiverec import AdaptiveRec
from arec.objectives.base import Objective
from arec.objectives.duorec import DuoRec
from arec.objectives.sasrec import SASRec

__all__ = ["AdaptiveRec", "DuoRec", "Objective", "SASRec", "build_objective"]

_METHODS = {"sasrec": SASRec, "duorec": DuoRec, "adaptiverec": AdaptiveRec}
_CONTRASTIVE = ("views", "lambda_cl", "temperature", "same_target_negatives")
_SETTINGS = {
    "sasrec": (),
    "duorec": _CONTRASTIVE,
    "adaptiverec": (
        *_CONTRASTIVE,
        "positives",
        "partner_weight",
        "denominator",
        "weighting",
        "threshold_grad",
        "quantile",
        "regulariser",
        "lambda_reg",
        "regularise_encoder",
    ),
}


def build_objective(config: Config, num_items: int) -> Objective:
    """The method of ``config.method`` on a fresh encoder; initialisation draws from torch's RNG."""
    encoder = Encoder(
        num_items,
        max_length=config.max_length,
        hidden_size=config.hidden_size,
        layers=config.layers,
        heads=config.heads,
        feed_forward=config.feed_forward,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        norm_first=config.norm_first,
    )
    settings = {name: getattr(config, name) for name in _SETTINGS[config.method]}
    return _METHODS[config.method](encoder, **settings)
