from __future__ import annotations

import inspect
import tomllib
from pathlib import Path

import pytest

from arec.config import _USED, RECIPES, Config
from arec.data import load
from arec.data.batches import TrainingBatches
from arec.errors import ConfigError
from arec.models import Encoder
from arec_kernels import adaptive_info_nce


def test_round_trip_through_toml() -> None:
    config = Config(method="duorec", learning_rate=3e-4, threshold_grad=0.05, data_dir="/data")
    assert Config.from_settings(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs: Input should be greater than or equal to 1, got 0"),
        ({"epochs": "many"}, "epochs: Input should be a valid integer"),
        ({"epoch": 3}, "epoch: no such setting; did you mean epochs?"),
        ({"learning-rate": 3}, "learning-rate: no such setting; did you mean learning_rate?"),
        ({"xyz": 3}, "xyz: no such setting; see --help for all of them"),
        ({"method": "no-such-method"}, "method: Input should be 'sasrec', "),
        ({"method": "cl4srec", "views": "su"}, "views: 'su' does not go with method 'cl4srec'"),
        ({"method": "duorec", "views": "cl4srec"}, "views: 'cl4srec' does not go with"),
        ({"similarity": "dot"}, "similarity: adaptiverec compares cosines"),
        ({"hidden_size": 10**30}, "hidden_size: Input should be less than"),
        ({"layers": 10**9}, "layers: Input should be less than"),
        ({"temperature": 1e-30}, "temperature: Input should be greater than or equal to 0.000000"),
        ({"threshold_grad": 1e30}, "threshold_grad: Input should be less than or equal to 1000000"),
        ({"seed": 2**63}, "seed: Input should be less than"),
        ({"heads": 3}, "heads: expected a divisor of hidden_size=64"),
        ({"partner_weight": 1}, "partner_weight: Input should be less than 1, got 1"),
        ({"positives": False, "denominator": "all"}, 'denominator: expected "negatives" without positives'),
        ({"batch_size": 1}, "batch_size: expected at least 2"),
        ({"dropout": float("nan")}, "dropout: "),
        ({"learning_rate": float("inf")}, "learning_rate: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_settings(settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_settings(tmp_path) -> None:
    with pytest.raises(ConfigError, match="nowhere.toml: No such file.*recipes: "):
        Config.read_settings(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    for text in ("epochs = ", f"epochs = {'9' * 5000}", "a = " + "[" * 100_000):
        broken.write_text(text)
        with pytest.raises(ConfigError, match="broken.toml: not valid TOML"):
            Config.read_settings(broken)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('norm_first = "yes"', "norm_first: expected true or false, got 'yes'"),
        ("norm_first = 1", "norm_first: expected true or false, got 1"),
        ('dropout = "0.3"', "dropout: expected a number, got '0.3'"),
        ("epochs = true", "epochs: expected a number, got True"),
        ('threshold_grad = "none"', "threshold_grad: expected a number, got 'none'"),
    ],
)
def test_a_file_says_what_is_text_and_what_a_number(tmp_path, line: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(line)
    with pytest.raises(ConfigError, match=f"mine.toml: {message}"):
        Config.from_settings({}, file)


def test_a_misspelt_recipe() -> None:
    with pytest.raises(ConfigError, match="; did you mean sasrec-ml-1m[?]$"):
        Config.read_settings("sasrec-ml1m")


def test_a_file_is_none_only_when_it_is_not_given() -> None:
    with pytest.raises(ConfigError, match="expected a TOML file"):
        Config.from_settings({}, "")


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path) -> None:
    file = tmp_path / "notepad.toml"
    file.write_bytes(b"\xef\xbb\xbfepochs = 3\r\n")
    assert Config.from_settings({}, file).epochs == 3


def test_relative_paths_start_beside_their_file(tmp_path, monkeypatch) -> None:
    def read(text: str) -> tuple[str, Path | None]:
        (tmp_path / "mine.toml").write_text(text)
        config = Config.from_settings({}, Path("../mine.toml"))
        return config.dataset, config.data_dir

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert read('dataset = "log.csv"') == ("../log.csv", None)
    assert read('dataset = "/data/log.csv"') == ("/data/log.csv", None)
    assert read('dataset = "beauty"\ndata_dir = "beauty"') == ("beauty", Path("../beauty"))
    monkeypatch.setenv("HOME", "/home/me")
    assert read('dataset = "~/log.csv"\ndata_dir = "~"') == ("/home/me/log.csv", Path("/home/me"))
    config = Config.from_settings({"dataset": "~/log.csv", "data_dir": "~/data"})
    assert (config.dataset, config.data_dir) == ("/home/me/log.csv", Path("/home/me/data"))
    given = {"dataset": "log.csv", "data_dir": "data"}
    config = Config.from_settings(given, tmp_path / "mine.toml")
    assert (config.dataset, config.data_dir) == ("log.csv", Path("data")), "of the command line"


def test_a_wrong_setting_is_looked_for_where_it_stands(tmp_path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("heads = 3\nepochs = 0\n")
    with pytest.raises(ConfigError, match="mine.toml: epochs: Input should be greater"):
        Config.from_settings({}, file)
    with pytest.raises(ConfigError, match="mine.toml: heads: expected a divisor"):
        Config.from_settings({"epochs": 1}, file)
    with pytest.raises(ConfigError, match="^epochs: Input should be greater"):
        Config.from_settings({"epochs": -1}, file)
    assert Config.from_settings({"epochs": 1, "heads": 2}, file).epochs == 1


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_recipes_are_valid(recipe: str) -> None:
    config = Config.from_settings({}, recipe)
    assert not config.unused
    assert f"{recipe}-".startswith(f"{config.method}-{config.dataset}-")


def test_every_size_of_the_encoder_is_in_the_configuration() -> None:
    parameters = set(inspect.signature(Encoder).parameters)
    assert parameters - set(Config.model_fields) == {"num_items", "causal", "with_mask"}


@pytest.mark.parametrize("constructor", [load, TrainingBatches, Encoder, adaptive_info_nce])
def test_constructors_have_the_defaults_of_the_configuration(constructor) -> None:
    parameters = inspect.signature(constructor).parameters.values()
    shared = {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name in Config.model_fields
    }
    assert shared
    assert shared == {name: Config.model_fields[name].default for name in shared}


def test_cl4srec_brings_its_own_views() -> None:
    assert Config(method="cl4srec").views == "cl4srec"
    assert not Config(method="cl4srec").partners


@pytest.mark.parametrize(
    ("settings", "masked"),
    [
        ({"method": "sasrec", "task": "masked-item"}, False),
        ({"method": "bert4rec"}, True),
        ({"method": "duorec"}, False),
        ({"method": "duorec", "task": "masked-item"}, True),
    ],
)
def test_who_is_trained_on_masked_items(settings: dict, masked: bool) -> None:
    assert Config.from_settings(settings).masked_items is masked


@pytest.mark.parametrize(
    ("method", "unused"),
    [
        ("sasrec", ["lambda_cl", "mask_rate", "mask_ratio", "quantile"]),
        ("bert4rec", ["lambda_cl", "mask_ratio", "quantile"]),
        ("cl4srec", ["mask_rate", "quantile"]),
        ("duorec", ["mask_rate", "mask_ratio", "quantile"]),
        ("adaptiverec", ["mask_rate", "mask_ratio"]),
    ],
)
def test_settings_that_a_method_does_not_use(method: str, unused: list[str]) -> None:
    assert _USED.keys() <= Config.model_fields.keys()
    assert Config(method=method).unused == []
    given = {"lambda_cl": 0.2, "mask_rate": 0.3, "mask_ratio": 0.4, "quantile": 0.8, "epochs": 3}
    assert Config(method=method, **given).unused == unused
    written = Config(method=method).model_dump()
    assert Config(**written).unused == [], "as config.toml has all of them"


@pytest.mark.parametrize(
    ("settings", "unused"),
    [
        ({"task": "masked-item", "mask_rate": 0.3}, []),
        ({"method": "sasrec", "task": "masked-item", "similarity": "dot"}, ["similarity", "task"]),
        ({"rows": "prefix", "anchors": "last", "random_windows": 0.1}, ["anchors", "random_windows"]),
        ({"views": "cl4srec", "crop_ratio": 0.5}, []),
        ({"positives": False, "denominator": "negatives", "weighting": "printed", "partner_weight": 0.3},
         ["partner_weight", "weighting"]),
        ({"simthres": "row", "quantile": 0.8, "threshold_grad": 0.1, "threshold_network": "row",
          "regulariser": "released", "lambda_reg": 0.2, "regularise_encoder": False},
         ["lambda_reg", "regularise_encoder", "regulariser", "threshold_grad", "threshold_network"]),
        ({"simthres": "epoch", "regulariser": "released", "lambda_reg": 0.2}, ["lambda_reg"]),
        ({"regulariser": "released", "lambda_reg": 0.2, "threshold_grad": 0.1}, []),
        ({"lambda_reg": 0, "regularise_encoder": False, "threshold_grad": 0.1}, ["regularise_encoder"]),
        ({"lambda_cl": 0, "task": "masked-item", "temperature": 0.5, "quantile": 0.8, "lambda_reg": 0.2,
          "positives": False, "regulariser": "released", "anchors": "last", "partner_weight": 0.2},
         ["anchors", "lambda_reg", "partner_weight", "positives", "quantile", "regulariser", "temperature"]),
        ({"dataset": "ml-1m", "data_dir": "data"}, []),
        ({"dataset": "my.csv", "data_dir": "data"}, ["data_dir"]),
        ({"dataset": "my.csv", "data_dir": None}, []),
    ],
)  # fmt: skip
def test_settings_that_others_leave_without_effect(settings: dict, unused: list[str]) -> None:
    assert Config(**settings).unused == unused
