"""Files of a run: whole or not there."""

from __future__ import annotations

import dataclasses
import resource
from pathlib import Path

import pytest
import torch
from tiny import sequences_of

from arec import checkpoint
from arec.config import Config
from arec.data.builtin import generate
from arec.errors import RunError
from arec.files import write_text


def test_a_checkpoint_on_a_full_disk_is_one_clear_error(tmp_path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(RunError, match="last.pt: cannot be written: File too large"):
            checkpoint.save(tmp_path / "last.pt", {"weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_every_setting_of_the_data_reaches_the_loader(tmp_path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("who,what,when\n" + "".join(f"u,{item},{9 - at}\n" for at, item in enumerate("cab")))
    names = {"user_column": "who", "item_column": "what", "time_column": "when"}
    sequences = checkpoint.load_data(Config(dataset=str(path), k_core=1, **names)).sequences
    assert [sequences.item_ids[item - 1] for item in sequences[0]] == ["b", "a", "c"]
    path.write_text("user,item,timestamp\nu,c,3\nu,a,2\nu,b,1\n")
    sequences = checkpoint.load_data(Config(dataset=str(path), k_core=1, time_column="")).sequences
    assert [sequences.item_ids[item - 1] for item in sequences[0]] == ["c", "a", "b"]
    loaded = checkpoint.load_data(Config(seed=1)).sequences
    assert checkpoint.fingerprint(loaded) == checkpoint.fingerprint(generate(1))


def test_a_fingerprint_tells_items_users_and_names_apart() -> None:
    one = sequences_of([1, 2], [3])
    renamed = dataclasses.replace(one, item_ids=one.item_ids[::-1].copy())
    others = [sequences_of([1], [2, 3]), sequences_of([2, 1], [3]), renamed]
    assert len({checkpoint.fingerprint(each) for each in (one, *others)}) == 4
    assert checkpoint.fingerprint(one) == checkpoint.fingerprint(sequences_of([1, 2], [3]))


def test_where_a_run_finds_things_is_not_what_it_is(tmp_path) -> None:
    write_text(tmp_path / "config.toml", Config(data_dir=Path("/old")).to_toml())
    write_text(tmp_path / "metrics.json", "{}")
    assert checkpoint.is_finished(tmp_path, Config(data_dir=Path("/new"), device="cpu"))


def test_a_device_without_memory_is_not_taken_for_a_damaged_checkpoint(tmp_path) -> None:
    with pytest.raises(torch.OutOfMemoryError), checkpoint.fitting(tmp_path / "last.pt"):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_checkpoint_runs_no_code(tmp_path) -> None:
    class Program:
        def __reduce__(self):
            return (tmp_path / "made").mkdir, ()

    checkpoint.save(tmp_path / "last.pt", {"objective": Program()})
    with pytest.raises(RunError, match="not a readable checkpoint"):
        checkpoint.load_state(tmp_path / "last.pt")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("damaged", ["empty", "cut off", "numbers", "anywhere"])
def test_a_damaged_checkpoint_is_one_clear_error(tmp_path, damaged) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"objective": {"weights": torch.ones(1000)}, "epoch": 3})
    checkpoint.load_state(path)
    whole = path.read_bytes()
    at = whole.index(torch.ones(1000).numpy().tobytes())
    for one in range(0, len(whole), 50 if damaged == "anywhere" else len(whole)):
        changed = {
            "empty": b"",
            "cut off": whole[: at + 100],
            "numbers": whole[: at + 100] + bytes(8) + whole[at + 108 :],  # which PyTorch reads
            "anywhere": whole[:one] + bytes([whole[one] ^ 255]) + whole[one + 1 :],
        }[damaged]
        path.write_bytes(changed)
        try:
            state = checkpoint.load_state(path)
        except RunError as error:
            assert "last.pt: not a readable checkpoint" in str(error)
        else:
            assert damaged == "anywhere", "where it says nothing, as in a date of the archive"
            assert state["epoch"] == 3 and state["objective"]["weights"].eq(1).all()
