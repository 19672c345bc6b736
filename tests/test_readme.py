"""What the README and docs/ say is so."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from arec.cli import Parser, add_settings
from arec.config import RECIPES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PUBLISH = runpy.run_path(str(ROOT / "bench" / "publish.py"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_code_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_options_and_recipes_exist() -> None:
    parser = Parser("arec.train", "")
    add_settings(parser)
    settings = set(parser._option_string_actions)
    own = {
        "arec.train": {"--config", "--run-dir", "--resume"},
        "arec.reproduce": {"--seeds", "--runs-dir", "--quick"},
    }
    for line in "\n".join(blocks("sh")).splitlines():
        for known in (settings | own[program] for program in own if program in line):
            assert set(re.findall(r"--[a-z-]+", line)) <= known, line
            for recipe in re.findall(r"--config (\S+)", line):
                assert (RECIPES / f"{recipe}.toml").is_file()


@pytest.mark.parametrize("page", PUBLISH["PAGES"], ids=lambda page: page.name)
def test_results_are_those_of_the_committed_files(page: Path) -> None:
    assert PUBLISH["render"](page) == page.read_text(), "run python bench/publish.py"
