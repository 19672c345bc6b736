"""What is trained: one file a method, all behind :class:`Objective`.

A new method is a file here, its class in `_METHODS` below, its name at `Config.method` and a recipe. One
that compares views derives from `ContrastiveObjective` and stands in `_CONTRASTIVE` of `arec.config`, one
that compares them with SimThres from `AdaptiveRec` and in `_ADAPTIVE` too; where it has thresholds of its
own, its recipe says ``simthres = "row"``, or it gets a network g that nothing uses. A setting of its own is a field
of `Config`, with a line of `_USED` there that says which runs use it, and a case of
`tests/arec/test_settings.py`; the lines of settings that it does not use are to leave it out. Views of crop, mask and
reorder are for CL4SRec and AdaptiveRec, unless `Config._check` lets it have them. `tests/arec/test_methods.py` trains
every method. The targets of a batch have another shape with ``rows="prefix"`` (`arec.data.batches.Batch`), of which
`next_item_loss` of `sasrec` takes care.
"""

from __future__ import annotations

from arec.config import Config
from arec.models import Encoder
from arec.objectives.adaptiverec import AdaptiveRec
from arec.objectives.base import Objective
from arec.objectives.bert4rec import BERT4Rec
from arec.objectives.cl4srec import CL4SRec
from arec.objectives.duorec import DuoRec
from arec.objectives.sasrec import SASRec

__all__ = ["AdaptiveRec", "BERT4Rec", "CL4SRec", "DuoRec", "Objective", "SASRec", "build_objective"]

_METHODS = {
    "sasrec": SASRec,
    "bert4rec": BERT4Rec,
    "cl4srec": CL4SRec,
    "duorec": DuoRec,
    "adaptiverec": AdaptiveRec,
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
        initialisation=config.initialisation,
        scale_embeddings=config.scale_embeddings,
        causal=not config.masked_items,
        with_mask=config.masked_items or config.views == "cl4srec",
    )
    return _METHODS[config.method](encoder, config)
