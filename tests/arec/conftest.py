from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from programs import call

# How long an example takes says nothing on a busy machine.
settings.register_profile("arec", deadline=None)
settings.load_profile("arec")


@pytest.fixture(autouse=True)
def fixed(monkeypatch) -> None:
    """Models of tests are always the same ones, and on the processor, whose words and figures they expect."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def refused(monkeypatch, capsys) -> Callable[..., str]:
    """What a program says, called so that it ends with exit code 2."""

    def refused(program, *arguments: object) -> str:
        with pytest.raises(SystemExit) as exit:
            call(program, monkeypatch, *arguments)
        assert exit.value.code == 2
        return capsys.readouterr().err

    return refused


@pytest.fixture
def data_dir() -> Path:
    """The folder of real data at hand."""
    folder = os.environ.get("AREC_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("AREC_DATA_DIR names no folder with real data")
    return Path(folder)


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    """90 users who walk along a circle of 20 items."""
    rng = np.random.default_rng(0)
    path = tmp_path / "walks.txt.gz"
    with gzip.open(path, "wt") as file:
        for user in range(90):
            start, length = rng.integers(20), rng.integers(6, 15)
            walk = " ".join(f"film{(start + step) % 20}" for step in range(length))
            print(f"user{user} {walk}", file=file)
    return path
