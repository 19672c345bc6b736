"""Files of a run: whole or not there."""

from __future__ import annotations

import os
import resource

import pytest
import torch

from arec import checkpoint


def test_files_of_a_run_follow_the_umask(tmp_path) -> None:
    before = os.umask(0o027)
    try:
        checkpoint.write_text(tmp_path / "run" / "config.toml", "")
    finally:
        os.umask(before)
    assert (tmp_path / "run" / "config.toml").stat().st_mode & 0o777 == 0o640


def test_a_file_that_cannot_be_completed_leaves_nothing(tmp_path) -> None:
    def interrupted(file) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_atomically(tmp_path / "metrics.json", interrupted)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_on_a_full_disk_is_one_clear_error(tmp_path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(checkpoint.RunError, match="last.pt: cannot be written: File too large"):
            checkpoint.save(tmp_path / "last.pt", {"weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
