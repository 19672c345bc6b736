from __future__ import annotations

import pytest
import torch

from arec.device import pick_precision


@pytest.mark.parametrize(
    ("has", "expected"),
    [({"avx512_bf16": True}, "bfloat16"), ({"bf16": True}, "bfloat16"), ({"avx512_bf16": False}, "float32")],
)
def test_auto_is_bfloat16_where_the_processor_multiplies_it(monkeypatch, has, expected) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert pick_precision("auto", torch.device("cpu")) == expected
    assert pick_precision("bfloat16", torch.device("cpu")) == "bfloat16"
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert pick_precision("auto", torch.device("cpu")) == "float32"
