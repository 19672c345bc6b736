from __future__ import annotations

import inspect
import tomllib

import pytest

from arec.config import RECIPES, Config, ConfigError
from arec.models import Encoder
from arec.objectives import _METHODS, _SETTINGS, build_objective


def test_round_trip_through_toml() -> None:
    config = Config(method="duorec", learning_rate=3e-4, threshold_grad=0.05, data_dir="/data")
    assert Config.from_settings(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs: Input should be greater than or equal to 1, got 0"),
        ({"epochs": "many"}, "epochs: Input should be a valid integer"),
        ({"epoch": 3}, "epoch: no such setting"),
        ({"method": "gru4rec"}, "method: Input should be 'sasrec', 'duorec' or 'adaptiverec'"),
        ({"heads": 3}, "heads: expected a divisor of hidden_size=64"),
        ({"weighting": "printed", "partner_weight": 1}, "partner_weight: expected less than 1"),
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
    broken.write_text("epochs = ")
    with pytest.raises(ConfigError, match="broken.toml: not valid TOML"):
        Config.read_settings(broken)


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_recipes_are_valid(recipe: str) -> None:
    config = Config.from_settings(Config.read_settings(recipe))
    assert recipe == f"{config.method}-{config.dataset}"


@pytest.mark.parametrize("method", sorted(_METHODS))
def test_every_setting_of_a_method_is_in_the_configuration_with_the_same_default(method) -> None:
    parameters = dict(inspect.signature(_METHODS[method]).parameters)
    parameters.pop("encoder")
    assert set(parameters) == set(_SETTINGS[method])
    for name, parameter in parameters.items():
        assert Config.model_fields[name].default == parameter.default, name
    build_objective(Config(method=method), num_items=3)


def test_every_size_of_the_encoder_is_in_the_configuration() -> None:
    parameters = set(inspect.signature(Encoder).parameters)
    assert parameters - set(Config.model_fields) == {"num_items", "causal", "extra_tokens"}
