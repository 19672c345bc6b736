from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch

from arec import train
from arec.cli import Parser, add_settings, given_settings, run_program
from arec.config import RECIPES, Config
from arec.errors import RunError

OPTIONAL = [name for name, field in Config.model_fields.items() if field.default is None]


@pytest.mark.parametrize("name", OPTIONAL)
def test_none_is_a_word_on_the_command_line(name: str) -> None:
    parser = Parser("arec.train", "")
    add_settings(parser)
    arguments = parser.parse_args([f"--{name.replace('_', '-')}", "none", "--dataset", "none"])
    assert given_settings(arguments) == {name: None, "dataset": "none"}
    assert "(default: none)" in parser.format_help()
    assert "None" not in parser.format_help()


def test_help_names_the_recipes(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--help"])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        train.main()
    text = capsys.readouterr().out
    assert "(default: None)" not in text
    for recipe in RECIPES.glob("*.toml"):
        assert re.search(rf"\s{recipe.stem}[,\s]", text), "whole, to be copied"


@pytest.mark.parametrize("program", ["train", "evaluate", "recommend", "report", "reproduce"])
def test_ctrl_c_while_pytorch_is_imported_is_one_line(program: str, tmp_path) -> None:
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, "-m", f"arec.{program}"],
        check=False, capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(train.__file__).parents[1])},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_termination_signal_ends_in_order_too() -> None:
    program = """
import os, signal, time
from arec.cli import run_program
def main():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
run_program("arec.train", main)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "python -m arec.train: interrupted\n")


@pytest.mark.parametrize("end", ["", "raise SystemExit"])  # as --help does
def test_a_reader_that_leaves_early_is_no_error(end: str) -> None:
    program = f"""
from arec.cli import run_program
def main():
    for _ in range(100_000):
        print("a line that nobody reads")
    {end}
run_program("arec.recommend", main)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def failing(error: Exception) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


def test_the_package_names_its_programs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "arec"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2 and not done.stdout
    sources = Path(train.__file__).parent.glob("*.py")
    programs = {path.stem for path in sources if '__name__ == "__main__"' in path.read_text()}
    programs.remove("__main__")
    assert set(re.findall(r"python -m arec\.(\w+)", done.stderr)) == programs


@pytest.mark.parametrize("module", ["arec", "arec.train"])
def test_every_program_tells_the_installed_version(module: str) -> None:
    shown = subprocess.check_output([sys.executable, "-m", module, "--version"], text=True)
    assert shown == f"arec {metadata.version('arec')}\n"


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")]
)
def test_out_of_memory_is_one_line(error: Exception, capsys) -> None:
    with pytest.raises(SystemExit) as exit:
        run_program("arec.train", failing(error))
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("python -m arec.train: error: out of memory; expected settings")
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "there/ok.csv"), "there/ok.csv: Perm"),
        (UnicodeEncodeError("ascii", "aé", 1, 2, "no such"), "'é' cannot be written as ascii"),
    ],
)
def test_what_the_system_refuses_is_one_line(error: Exception, message: str, capsys) -> None:
    with pytest.raises(SystemExit) as exit:
        run_program("arec.evaluate", failing(error))
    assert exit.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"python -m arec.evaluate: error: {message}")
    assert shown.count("\n") == 1


@pytest.mark.parametrize(("program", "code"), [("arec.evaluate", 0), ("arec.recommend", 2)])
def test_a_terminal_of_ascii_gets_tables_in_it_but_no_changed_ids(program: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c",
         f"from arec.cli import run_program\nrun_program({program!r}, lambda: print('0.1 ± 0.2'))"],
        check=False, capture_output=True, text=True, cwd=Path(train.__file__).parents[1],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "" if code else "0.1 \\xb1 0.2\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_under_the_output_is_one_line() -> None:
    program = "from arec.cli import run_program\nrun_program('arec.evaluate', lambda: print('figures'))"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program],
            check=False, stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "python -m arec.evaluate: error: the output cannot be written: No space left on device\n"
    )


@pytest.mark.parametrize("stream", [1, 2])
def test_a_stream_that_is_closed_gets_nothing(stream: int) -> None:
    program = (
        "import sys; from arec.cli import run_program\n"
        "run_program('arec.train', lambda: [print(name, file=getattr(sys, f'std{name}')) for name in ('out', 'err')])"
    )
    closed = ["sh", "-c", f'"$0" -c "$1" {stream}>&-', sys.executable, program]
    done = subprocess.run(closed, check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (("", "err\n") if stream == 1 else ("out\n", ""))


def test_an_error_is_one_line_whatever_names_are_in_it(capsys) -> None:
    with pytest.raises(SystemExit):
        run_program("arec.train", failing(RunError("a\nb: no such\r\nfile")))
    assert capsys.readouterr().err == "python -m arec.train: error: a b: no such file\n"


def test_faults_of_the_program_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        run_program("arec.train", failing(RuntimeError("shapes cannot be multiplied")))


def test_options_are_whole_words_and_switches_have_two_ways(capsys) -> None:
    parser = Parser("arec.train", "")
    add_settings(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--epoch", "3"])
    assert "did you mean --epochs?" in capsys.readouterr().err
    given = given_settings(parser.parse_args(["--no-positives", "--filter-history"]))
    assert given == {"positives": False, "filter_history": True}


def test_large_tensors_are_on_large_pages() -> None:
    """Whichever is imported first; not where the system gives none, or the user wants none."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file() or "[madvise]" not in setting.read_text():
        pytest.skip("the system does not give large pages to those who ask")
    program = """
import re
{}
tensor = torch.zeros(64 << 20)
print(sum(map(int, re.findall(r"AnonHugePages: +(\\d+)", open("/proc/self/smaps").read()))))
"""
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    for imports, own, expected in (
        ("import arec, torch", {}, True),
        ("import torch, arec", {}, True),
        ("import arec, torch", {"THP_MEM_ALLOC_ENABLE": "0"}, False),
    ):
        done = subprocess.run([sys.executable, "-c", program.format(imports)], env=environment | own,
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert (int(done.stdout) > 0) is expected


def test_threads_that_wait_sleep_soon() -> None:
    """Or the user says how long they are to wait. OpenMP shows what it found as it is loaded."""
    chosen = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    environment = {name: value for name, value in os.environ.items() if name not in chosen}

    def spins(program: str, **own: str) -> str | None:
        shown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True,
                               env={**environment, "OMP_DISPLAY_ENV": "verbose", **own}).stderr  # fmt: skip
        found = re.search(r"GOMP_SPINCOUNT = '(\d+)'", shown)
        return found and found[1]

    default = spins("import torch")
    if default is None:
        pytest.skip("PyTorch here has another OpenMP than gcc's")
    program = "import arec, torch"
    assert int(spins(program)) < int(default)
    assert spins(program, GOMP_SPINCOUNT="12345") == "12345"
    assert spins(program, OMP_WAIT_POLICY="ACTIVE") == spins("import torch", OMP_WAIT_POLICY="ACTIVE")
