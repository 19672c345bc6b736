"""What the README and docs/ say is so."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from arec import evaluate, recommend, report, reproduce, train
from arec.cli import Parser, add_settings
from arec.config import RECIPES, Config

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


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_recipes_are_those_of_the_published_runs(recipe: str) -> None:
    settings = Config.from_settings({}, recipe).model_dump(mode="json")
    for path in (ROOT / "bench" / "results").glob(f"{recipe}*.json"):
        if re.fullmatch(rf"{recipe}(-seed-\d+)?", path.stem):
            ran = json.loads(path.read_text())["config"]
            # "auto" precision is another one on another machine; older records lack younger settings.
            other = {name for name, value in settings.items() if name in ran and ran[name] != value}
            assert other <= {"seed", "precision", "device"}, path.name


def test_options_in_the_text_exist(monkeypatch, capsys) -> None:
    known = {"--nproc-per-node", "--no-deps", "--extra-index-url", "--benchmark-only"}  # of other programs
    for program in (train, evaluate, recommend, report, reproduce):
        monkeypatch.setattr(sys, "argv", ["program", "--help"])
        with pytest.raises(SystemExit):
            program.main()
        known |= set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page.read_text())) <= known, page


@pytest.mark.parametrize("page", PUBLISH["PAGES"], ids=lambda page: page.name)
def test_results_are_those_of_the_committed_files(page: Path) -> None:
    assert PUBLISH["render"](page) == page.read_text(), "run python bench/publish.py"
