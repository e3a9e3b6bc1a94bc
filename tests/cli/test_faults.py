"""Commands on real machines: signals, full disks and read-only folders. Nothing is lost, and one line explains it."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import arcsm
from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead, load
from arcsm.cli import application, models
from arcsm.training import run_config
from small_runs import TINY, before_step, call


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Restore the handlers of signals after each test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def build() -> AutoregressiveModel:
    torch.manual_seed(0)
    return AutoregressiveModel(MADE(2, 4, (8,)), ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 4))


def test_a_terminated_command_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arcsm.save(build(), tmp_path / "model.safetensors")
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / "scores.csv").write_text("older scores")
    written = []

    def terminated(*_: object) -> None:
        written.extend(path.name for path in tmp_path.iterdir() if "tmp" in path.name)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(models, "log_probs", terminated)
    command = ["arcsm", "score", *(str(tmp_path / name) for name in ("model.safetensors", "rows.csv"))]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "scores.csv")])
    with pytest.raises(SystemExit) as stop:
        application.main()
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # further signals, while it cleans up
    assert capsys.readouterr().err == "arcsm: terminated\n"
    assert len(written) == 1  # the signal came while the file was written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "rows.csv", "scores.csv"]
    assert (tmp_path / "scores.csv").read_text() == "older scores"


def test_one_of_several_processes_leaves_the_signal_to_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    at_exit: list[object] = []  # what would end the process of the tests with the exit code of this command
    monkeypatch.setattr("atexit.register", lambda function, *_: at_exit.append(function))
    monkeypatch.setattr(application, "was_started", lambda: True)
    monkeypatch.setattr(application, "run", lambda _: 0)
    with pytest.raises(SystemExit):
        application.main()
    assert signal.getsignal(signal.SIGTERM) == before
    assert at_exit == [application._end_at_once]


def test_ctrl_c_prints_how_to_continue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY % (8, 1e9))
    with before_step(2, lambda _: signal.raise_signal(signal.SIGINT)):
        assert call("train", tmp_path / "tiny.yaml", "--out", tmp_path / "run") == 130
    output = capsys.readouterr().err.strip().splitlines()[-1]
    assert "interrupted after step 3; continue with: arcsm train" in output
    assert call(*output.partition("continue with: arcsm ")[2].split()) == 0
    assert load(tmp_path / "run").features == 64


@contextmanager
def full_disk(free: int = 2048) -> Iterator[None]:
    """Let writes beyond a number of bytes per file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_reported_and_keeps_older_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, run = tmp_path / "tiny.yaml", tmp_path / "run"
    source.write_text(TINY % (20, 1e9))
    assert call("train", source, "--out", run) == 0
    before = (run / "model.safetensors").read_bytes()
    watch = ("--set", "train.tensorboard=true", "--set", "train.validate_every=1")
    for command, file in (
        (("sample", run, "-n", 64, "--out", run / "model.npy"), run / "model.npy"),
        (("train", source, "--out", tmp_path / "new"), tmp_path / "new" / "state.safetensors"),
        (("train", source, "--out", tmp_path / "watched", *watch), tmp_path / "watched" / "tensorboard"),
    ):
        capsys.readouterr()
        with full_disk():
            assert call(*command) == 1
        error = capsys.readouterr().err
        assert f"{file}: cannot be written" in error
        assert error.count("\n") == 1
    assert (run / "model.safetensors").read_bytes() == before
    assert not [path.name for path in run.iterdir() if "tmp" in path.name]
    assert not (run / "model.npy").exists()


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write anywhere; these tests may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_read_only_folders_are_named_and_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = run_config.presets()  # which others cannot read if the package lies in a folder of root's
    monkeypatch.setattr(run_config, "presets", lambda: known)
    with tempfile.TemporaryDirectory() as name:  # that of pytest is closed to others
        folder = Path(name)
        rows, gaps, run = folder / "rows.csv", folder / "gaps.csv", folder / "run"
        rows.write_text("a,b\n" + "".join(f"{i % 7},{i % 5}\n" for i in range(60)))
        gaps.write_text(rows.read_text() + "3,\n")
        (folder / "tiny.yaml").write_text(TINY.replace("{kind: digits}", f"{{kind: table, path: {rows}}}") % (4, 1e9))
        arcsm.save(build(), run)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        folder.chmod(0o555)
        for number, command in enumerate((("train", folder / "tiny.yaml"), ("score", run, rows), ("impute", gaps))):
            assert call(*command, "--out", tmp_path / f"{number}.csv") == 0  # what is imported late is now there
            capsys.readouterr()
            with as_nobody():
                code = call(*command, "--out", folder / "new.csv")
            error = capsys.readouterr().err
            assert (code, error.count("\n")) == (1, 1), error
            assert error.startswith(f"arcsm: {folder}")
            assert "ermission denied" in error
        assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
