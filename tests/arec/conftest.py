from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says nothing on a busy machine.
settings.register_profile("arec", deadline=None)
settings.load_profile("arec")


@pytest.fixture
def data_dir() -> Path:
    """The folder of real data at hand."""
    folder = os.environ.get("AREC_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("AREC_DATA_DIR names no folder with real data")
    return Path(folder)
