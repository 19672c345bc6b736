"""Every setting of a run: typed, documented, validated.

The TOML file, the command line (``--learning-rate`` for ``learning_rate``) and :class:`Config`
say the same names. Relative paths start in the folder of the TOML file in which they stand, those
of the command line in the current one.
"""

from __future__ import annotations

import os.path
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from arec.data import NAMES
from arec.errors import ConfigError, did_you_mean
from arec.files import user_path
from arec_kernels.arguments import MOST

RECIPES = Path(__file__).parent / "recipes"
RECIPE_NAMES = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
# Settings that say where a run finds things, not what it is.
PLACES = {"data_dir", "device"}
_CONTRASTIVE = ("cl4srec", "duorec", "adaptiverec")
_ADAPTIVE = ("adaptiverec",)  # of these, those with SimThres

# Of a tensor: its number of bytes, a product of such sizes, has to stay countable.
_Size = Annotated[int, Field(ge=1, lt=2**31)]


def _expanded(value: Any) -> Any:
    """`user_path` as text, as it is given otherwise."""
    return os.path.expanduser(value) if isinstance(value, (str, Path)) else value


class Config(BaseModel):
    """Settings of one training run; the defaults train AdaptiveRec on the built-in data.

    `from_settings` checks what it is given, and so does ``Config(quantile=0.8)``, with pydantic's own
    error; ``model_copy(update=…)`` does not. What a setting means says ``python -m arec.train --help``
    and ``Config.model_fields["quantile"].description``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: Literal["sasrec", "bert4rec", "cl4srec", "duorec", "adaptiverec"] = Field(
        "adaptiverec", description="what is trained"
    )

    # Data
    dataset: Annotated[str, BeforeValidator(_expanded)] = Field(
        "builtin", description=f"{', '.join(NAMES)}, or the path of your own file"
    )
    data_dir: Annotated[Path | None, BeforeValidator(_expanded)] = Field(
        None, description="folder that already holds the file of a named data set; else it is fetched"
    )
    user_column: str = Field("user", description="column of the user in a CSV, TSV or Parquet file")
    item_column: str = Field("item", description="column of the item in a CSV, TSV or Parquet file")
    time_column: str = Field(
        "timestamp",
        description="column of the time in a CSV, TSV or Parquet file; empty: rows are in time order",
    )
    k_core: int = Field(
        5, ge=1, description="drop users and items with fewer interactions, repeatedly"
    )

    # Model
    hidden_size: _Size = Field(64, description="width d of embeddings and hidden states")
    layers: int = Field(2, ge=1, le=1000, description="transformer layers")
    heads: int = Field(2, ge=1, description="attention heads; must divide hidden_size")
    feed_forward: _Size = Field(256, description="inner width of the feed-forward layers")
    dropout: float = Field(0.2, ge=0, lt=1, description="of embeddings and layer outputs")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="of attention weights")
    norm_first: bool = Field(True, description="pre-norm layers instead of post-norm")
    initialisation: Literal["xavier", "normal"] = Field(
        "xavier",
        description="of linear layers; normal: deviation 0.02 (the published programs), with which "
        "pre-norm layers start slowly",
    )
    scale_embeddings: bool = Field(
        True,
        description="item embeddings enter the layers times the root of hidden_size (SASRec's own "
        "program): faster on sparse data, more repeated items",
    )
    max_length: _Size = Field(50, description="items of a sequence that the model sees")

    # Training
    rows: Literal["all-positions", "prefix"] = Field(
        "all-positions",
        description="all-positions: a window a user, every position has a target; prefix: a row for "
        "every position, only its last has one (the published programs)",
    )
    task: Literal["next-item", "masked-item"] = Field(
        "next-item",
        description="basic loss of the contrastive methods; masked-item: masked items as in "
        "bert4rec, but scored as by the other methods (the paper's Sec. 4.1.1)",
    )
    mask_rate: float = Field(
        0.2, gt=0, lt=1, description="share of items that the masked-item task masks"
    )
    last_mask_rate: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of rows in which it masks the last item alone, as ranking does",
    )
    sampled_negatives: int | None = Field(
        None,
        ge=1,
        description="of the basic loss: a batch's targets and at least so many other items, drawn "
        "anew for each batch, with which the loss comes out lower; none: all items, which for 100,000s of "
        "them is work for a GPU",
    )
    epochs: _Size = Field(20, description="passes over the rows, at most")
    batch_size: _Size = Field(128, description="sequences a step; the contrastive N is twice it")
    learning_rate: float = Field(2e-3, gt=0, description="peak rate of AdamW")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    warmup_epochs: float = Field(
        2.0, ge=0, description="linear warm-up of the learning rate, half of the epochs at most"
    )
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="of the learning rate after warm-up; cosine: reaches lowest_rate at the last epoch"
    )
    lowest_rate: float = Field(
        0.0, ge=0, le=1, description="share of the peak at which warm-up begins and a cosine ends"
    )
    random_windows: float = Field(
        0.5,
        ge=0,
        le=1,
        description="all-positions: share of long sequences that give a random window, not the last",
    )
    gradient_clip: float = Field(5.0, ge=0, description="largest norm of the gradient; 0: no limit")
    patience: int = Field(
        10, ge=1, description="stop after so many epochs without a better validation NDCG@10"
    )
    validation_users: int | None = Field(
        None, ge=1, description="users ranked after each epoch, the same random ones; none: all"
    )
    filter_history: bool = Field(
        True, description="choose the checkpoint by the ranking without the user's own history"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of data, initialisation, batches and dropout")
    device: str = Field("auto", description="auto, cpu or cuda")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32",
        description="of products in training; bfloat16 (autocast): faster where the "
        "device multiplies it, many times slower elsewhere, which auto avoids; weights, softmax, loss "
        "and ranking stay float32",
    )

    # Contrastive learning
    views: Literal["un", "su", "us", "us_x", "cl4srec"] = Field(
        "us_x",
        description="of features h of a sequence, h' of it with other dropout, h_sem of a sequence with the same "
        "target: un (h, h'), su (h, h_sem), us both, us_x (h', h_sem); "
        "cl4srec: two of crop, mask, reorder; with masked items us_x is su",
    )
    anchors: Literal["random", "last"] = Field(
        "random",
        description="all-positions: the views are a window's items up to a random position or to its "
        "last; last: the same ones in most epochs, whose features drift apart from those of all others",
    )
    crop_ratio: float = Field(0.6, gt=0, le=1, description="cl4srec: share of a sequence that crop keeps")
    mask_ratio: float = Field(0.3, ge=0, le=1, description="cl4srec: share of a sequence's items that mask hides")
    reorder_ratio: float = Field(0.6, ge=0, le=1, description="cl4srec: share of a sequence that reorder shuffles")
    similarity: Literal["cosine", "dot"] = Field(
        "cosine",
        description="of cl4srec and duorec; dot: DuoRec's published runs, plain PyTorch, not the op",
    )
    lambda_cl: float = Field(0.1, ge=0, description="weight of the contrastive loss (Eq. 9)")
    temperature: float = Field(
        1.0, ge=1 / MOST, le=MOST, description="cosines are divided by it (the paper: 1)"
    )
    same_target_negatives: bool = Field(
        True, description="rows of a batch with the same target count as negatives"
    )
    simthres: Literal["learnable", "row", "epoch"] = Field(
        "learnable",
        description="learnable: by a network (Sec. 3.2.2); statistical (Sec. 3.2.1, which leaves open of what): "
        "row, each row's own quantile; epoch, the previous epoch's quantile for every row",
    )
    threshold_network: Literal["context", "row", "flattened"] = Field(
        "context",
        description="what g sees (Eq. 7): the row and its batch's mean, the row alone, or the whole "
        "batch in one vector (as released; 8·(batch_size·hidden_size)·batch_size weights)",
    )
    positives: bool = Field(
        True, description="pairs above SimThres become positives (Eq. 9), not only masked (Eq. 8)"
    )
    partner_weight: float = Field(
        0.5, gt=0, lt=1, description="label weight of the augmented partner; the others share the rest"
    )
    denominator: Literal["negatives", "all"] = Field(
        "negatives", description="pairs above SimThres leave the denominator (paper) or stay"
    )
    weighting: Literal["label", "label-unnormalised", "printed"] = Field(
        "label",
        description="label: weights of the labels, that sum to 1; label-unnormalised: the same, but a row without "
        "positives has only partner_weight (the released program); printed: inside the logarithm (Eq. 9)",
    )
    threshold_grad: float | None = Field(
        None,
        ge=1 / MOST,
        le=MOST,
        description="width of the straight-through gradient to SimThres; none: paper",
    )
    quantile: float = Field(
        0.9, gt=0, lt=1, description="share of similarities below the statistical SimThres (k_stat)"
    )
    regulariser: Literal["paper", "released"] = Field(
        "paper",
        description="paper: λ·‖k − k̄‖²/2B with the previous epoch's quantile k̄, inside λ_cl; "
        "released: λ·‖k − s̄‖ with the mean s̄ of its batches' quantiles, outside; with simthres epoch: "
        "whether the threshold is k̄ or s̄",
    )
    lambda_reg: float = Field(0.1, ge=0, description="weight λ of the regulariser (Eq. 9)")
    regularise_encoder: bool = Field(
        True, description="the regulariser's gradient goes on into the encoder, as released"
    )

    @model_validator(mode="before")
    @classmethod
    def _views_of_cl4srec(cls, settings: dict[str, Any]) -> dict[str, Any]:
        own = {"views": "cl4srec"} if settings.get("method") == "cl4srec" else {}
        return own | settings

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.hidden_size % self.heads:
            raise ValueError(f"heads: expected a divisor of hidden_size={self.hidden_size}")
        if (self.views == "cl4srec") != (self.method == "cl4srec") and not self.adaptive:
            raise ValueError(f"views: {self.views!r} does not go with method {self.method!r}")
        if self.contrastive and self.batch_size < 2:
            raise ValueError("batch_size: expected at least 2, to have sequences to contrast")
        if self.adaptive and not self.positives and self.denominator == "all":
            raise ValueError(
                'denominator: expected "negatives" without positives, or pairs above SimThres count as '
                "all others do (method duorec)"
            )
        if self.similarity == "dot" and self.adaptive:
            raise ValueError(f"similarity: {self.method} compares cosines with SimThres, got 'dot'")
        return self

    @property
    def masked_items(self) -> bool:
        """Whether the encoder is bidirectional, trained on masked items."""
        masked = self.task == "masked-item" and _has_contrast(self)
        return self.method == "bert4rec" or masked

    @property
    def contrastive(self) -> bool:
        """Whether training compares views."""
        return _has_contrast(self) and self.lambda_cl > 0

    @property
    def adaptive(self) -> bool:
        """Whether the method compares similarities with SimThres."""
        return self.method in _ADAPTIVE

    @property
    def has_simthres(self) -> bool:
        """Whether training compares similarities with SimThres."""
        return self.adaptive and self.contrastive

    @property
    def learns_simthres(self) -> bool:
        """Whether a network gives SimThres."""
        return self.has_simthres and self.simthres == "learnable"

    @property
    def threshold_stays(self) -> bool:
        """Whether SimThres is learnable, but no gradient reaches it."""
        return self.learns_simthres and not self.lambda_reg and self.threshold_grad is None

    def uses(self, setting: str) -> bool:
        """Whether the others leave it with an effect."""
        return setting not in _USED or _USED[setting](self)

    @property
    def unused(self) -> list[str]:
        """The settings that were given, not as by default, although the others leave them without effect."""
        return sorted(
            name
            for name in self.model_fields_set
            if not self.uses(name) and getattr(self, name) != Config.model_fields[name].default
        )

    @property
    def partners(self) -> bool:
        """Whether training draws same-target partners."""
        return self.contrastive and self.views in ("su", "us", "us_x")

    @classmethod
    def from_settings(
        cls, settings: Mapping[str, Any], file: str | Path | None = None
    ) -> Config:
        """Validate settings by name, and below them those of a TOML file or recipe.

        Raises:
            ConfigError: one line naming the first setting that is wrong, the file if it comes from
                there, and what was expected.
        """
        in_file = {} if file is None else cls.read_settings(file)
        try:
            return cls.model_validate({**in_file, **settings})
        except ValidationError as error:
            name, message = cls._summary(error)
            where = f"{file}: " if name in in_file and name not in settings else ""
            raise ConfigError(f"{where}{name}: {message}") from None

    @classmethod
    def _summary(cls, error: ValidationError) -> tuple[str, str]:
        """The name of the first wrong setting, and what is wrong with it."""
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            hint = did_you_mean(
                name.replace("-", "_"), cls.model_fields, "; see --help for all of them"
            )
            return name, f"no such setting{hint}"
        message = first["msg"].removeprefix("Value error, ")
        if not name:  # of `_check`, which says both
            return tuple(message.split(": ", 1))
        return name, f"{message}, got {first['input']!r}"

    @classmethod
    def read_settings(cls, source: str | Path) -> dict[str, Any]:
        """Settings in a TOML file, or in the recipe of that name; relative paths start beside it.

        Raises:
            ConfigError: there is no such file or recipe, it is not TOML, or a number is text in it.
        """
        path = RECIPES / f"{source}.toml"
        if not path.is_file():
            path = Path(source)
        try:
            settings = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            meant = did_you_mean(str(source), RECIPE_NAMES.split(", "))
            raise ConfigError(
                f"{source}: {reason}; expected a TOML file or one of the recipes: {RECIPE_NAMES}"
                f"{meant}"
            ) from None
        except (ValueError, RecursionError) as error:  # no TOML, too many digits, too deep
            raise ConfigError(f"{path}: not valid TOML: {error}") from None
        for name, value in settings.items():
            if name in cls.model_fields and (kind := _wrong_kind(value, cls.model_fields[name])):
                raise ConfigError(f"{path}: {name}: expected {kind}, got {value!r}")
        dataset, data_dir = settings.get("dataset"), settings.get("data_dir")
        if isinstance(dataset, str) and dataset not in NAMES:
            settings["dataset"] = str(path.parent / user_path(dataset))
        if isinstance(data_dir, str):
            settings["data_dir"] = str(path.parent / user_path(data_dir))
        return settings

    def to_toml(self) -> str:
        """The settings as TOML text; one that is None stays out, being the default."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def _has_contrast(config: Config) -> bool:
    return config.method in _CONTRASTIVE


# Which runs use a setting, where not all do.
_USED: dict[str, Callable[[Config], bool]] = {
    "data_dir": lambda config: config.data_dir is None or config.dataset in NAMES[1:],
    **dict.fromkeys(("mask_rate", "last_mask_rate"), lambda config: config.masked_items),
    "random_windows": lambda config: config.rows == "all-positions",
    **dict.fromkeys(("task", "views", "lambda_cl"), _has_contrast),
    **dict.fromkeys(("temperature", "same_target_negatives"), lambda config: config.contrastive),
    "anchors": lambda config: config.contrastive and config.rows == "all-positions",
    **dict.fromkeys(
        ("crop_ratio", "mask_ratio", "reorder_ratio"),
        lambda config: config.contrastive and config.views == "cl4srec",
    ),
    "similarity": lambda config: config.contrastive and not config.adaptive,
    **dict.fromkeys(
        ("simthres", "positives", "denominator", "quantile"), lambda config: config.has_simthres
    ),
    **dict.fromkeys(
        ("partner_weight", "weighting"), lambda config: config.has_simthres and config.positives
    ),
    **dict.fromkeys(
        ("threshold_network", "threshold_grad", "lambda_reg"), lambda config: config.learns_simthres
    ),
    "regulariser": lambda config: config.has_simthres and config.simthres != "row",
    "regularise_encoder": lambda config: config.learns_simthres and config.lambda_reg > 0,
}


def _wrong_kind(value: Any, field: FieldInfo) -> str:
    """What a setting is to be instead; empty where its kind is right.

    A command line has only text, so pydantic takes "3" for 3; a TOML file can say what it means.
    """
    kinds = (field.annotation, *get_args(field.annotation))
    if bool in kinds:
        return "" if isinstance(value, bool) else "true or false"
    numeric = int in kinds or float in kinds
    return "a number" if numeric and isinstance(value, (bool, str)) else ""
