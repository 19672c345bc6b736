"""Files that are written whole or not at all."""

from __future__ import annotations

import os

import pytest

from arec.files import remove_half_written, write_atomically, write_text


def test_files_of_a_run_follow_the_umask(tmp_path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "run" / "config.toml", "")
    finally:
        os.umask(before)
    assert (tmp_path / "run" / "config.toml").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("before", [[], ["whole"]])
def test_a_file_that_cannot_be_completed_stays_as_it_was(tmp_path, before) -> None:
    for text in before:
        write_text(tmp_path / "metrics.json", text)

    def interrupted(file) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "metrics.json", interrupted)
    assert [path.read_text() for path in tmp_path.iterdir()] == before


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path) -> None:
    kept = ["metrics.json", ".metrics.json.old", ".metrics.json", "metrics.json.12", ".log.jsonl.12"]
    for name in (*kept, ".metrics.json.12", ".metrics.json.34567"):
        (tmp_path / name).write_text("")
    remove_half_written(tmp_path / "metrics.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
