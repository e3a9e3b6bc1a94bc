"""The command as a whole: one-line errors, exit codes and help."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from typer.main import get_command

import arcsm
from arcsm._runtime.launcher import ProcessError
from arcsm._runtime.signals import Terminated
from arcsm.cli import application
from arcsm.cli.launching import SeveralProcesses
from small_runs import call


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "digit"], 1, "did you mean digits"),
        (["train"], 2, "missing argument"),
        (["trai"], 2, "no such command"),
        (["sample", "nowhere", "--out", "x.png"], 1, "no such file"),
        (["sample", "MODEL", "--out", "x.txt"], 1, "expected a .png, .csv, .parquet or .npy file"),
        (["sample", "MODEL", "--out", "x.png", "--sampler", "magic"], 1, "expected one of langevin"),
        (["sample", "MODEL", "--out", "x.png", "-n", "0"], 2, "-n"),
        (["sample", "MODEL", "--out", "x.png", "--device", "warp"], 1, "device"),
        (["report", "nowhere"], 1, "not a run"),
    ],
)
def test_mistakes_are_one_line_on_standard_error(
    arguments: list[str], code: int, message: str, image_run: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert call(*(argument.replace("MODEL", str(image_run)) for argument in arguments)) == code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("arcsm: ")
    assert message.lower() in captured.err.lower()


def test_every_command_has_help_with_an_example_and_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    overview, group = capsys.readouterr().out, get_command(application.app)
    for name, listed in group.commands.items():
        assert name in overview
        assert listed.help == group.get_command(None, name).help.split("\n\n")[0]
        assert call(name, "--help") == 0
        text = capsys.readouterr().out
        assert f"arcsm {name}" in text
        assert "Example" in text


def test_help_completion_and_unknown_commands_do_not_wait_for_torch() -> None:
    script = (
        "import sys; from arcsm.cli import application; code = application.run(sys.argv[1:]); "
        "print('torch' in sys.modules, code)"
    )
    for arguments, code in ((["--help"], 0), (["trai"], 2)):
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        assert done.stdout.endswith(f"False {code}\n")
    completion = {"_ARCSM_COMPLETE": "complete_bash", "COMP_WORDS": "arcsm im", "COMP_CWORD": "1"}
    script = (
        "import sys; from arcsm.cli.application import app\n"
        "try: app(prog_name='arcsm')\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, **completion},
    )  # fmt: skip
    assert done.stdout.split() == ["impute", "False"]


#: Runs a command and fails if it has imported a package that takes seconds to import.
_LIGHT = """
import sys
from arcsm._runtime import progress
from arcsm.cli import application
progress.monotonic = lambda: 0.0  # on a busy machine, too
code = application.run(sys.argv[1:])
sys.exit(code or ", ".join({"lightning_fabric", "matplotlib", "sklearn", "scipy.stats"} & sys.modules.keys()) or None)
"""


def test_the_command_prints_no_progress_bar_into_a_pipe_and_starts_fast(image_run: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _LIGHT, "sample", str(image_run), "-n", "2", "--out", str(tmp_path / "s.png")],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "FORCE_COLOR": "1"},
    )  # fmt: skip
    assert result.returncode == 0
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1


def test_an_interruption_caught_by_the_parser_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(application, "app", lambda **_: 130)
    assert application.run(["info", "x"]) == 130
    assert capsys.readouterr().err == "arcsm: interrupted\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 1, "out of memory"),
        (MemoryError("of 3 TiB"), 1, "out of memory (of 3 TiB)"),
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
        (Terminated(), 143, "terminated"),
    ],
)
def test_what_ends_a_command_is_one_line_and_its_exit_code(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(application, "app", Mock(side_effect=error))
    assert application.run(["info", "x"]) == code
    assert capsys.readouterr().err == f"arcsm: {message}\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("nodes: expected at least 1"), 1, "nodes: expected at least 1"),
        (ProcessError("process 1 ended"), 1, "process 1 ended; arcsm resume run goes on"),
        (KeyboardInterrupt("arcsm: interrupted after step 3"), 130, "interrupted after step 3"),
        (Terminated(), 143, "terminated"),
    ],
)
def test_what_ends_several_processes_is_one_line_with_what_to_do(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = SeveralProcesses(2, 1, "arcsm resume run goes on")
    monkeypatch.setattr(application, "app", Mock(side_effect=request))
    monkeypatch.setattr(application, "launch", Mock(side_effect=error))
    assert application.run(["fit", "x"]) == code
    assert capsys.readouterr().err == f"arcsm: {message}\n"


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"arcsm {arcsm.__version__}\n"
