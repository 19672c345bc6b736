from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def data_dir() -> Path:
    """The folder of real data at hand."""
    folder = os.environ.get("AREC_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("AREC_DATA_DIR names no folder with real data")
    return Path(folder)
