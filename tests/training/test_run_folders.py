"""Folders of runs under attack: several processes, processes that are killed, and file systems that cannot lock."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import arcsm
from small_runs import COMMAND, PATIENCE, TOY, at_work, call, environment


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_a_one_line_error(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "toy.yaml").write_text(TOY.format(rows=100, steps=2))
    monkeypatch.setattr(fcntl, "flock", fail)
    assert call("train", tmp_path / "toy.yaml", "--out", tmp_path / "run") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"run: its file system cannot lock it ({os.strerror(code)}); choose a folder on a disk" in line
    monkeypatch.undo()
    assert call("train", tmp_path / "toy.yaml", "--out", tmp_path / "run") == 0


def test_a_file_system_that_does_not_answer_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    released = threading.Event()
    (tmp_path / "toy.yaml").write_text(TOY.format(rows=100, steps=2))
    monkeypatch.setattr(fcntl, "flock", lambda *_: released.wait(PATIENCE))
    monkeypatch.setattr("arcsm.training.runs._LOCK_SECONDS", 0.1)
    assert call("train", tmp_path / "toy.yaml", "--out", tmp_path / "run") == 1
    assert "run: its file system cannot lock it (no answer for 0.1 s)" in capsys.readouterr().err
    released.set()


@pytest.mark.parametrize("resume", [False, True])
def test_of_two_processes_in_one_folder_one_trains(resume: bool, tmp_path: Path) -> None:
    source, run = tmp_path / "toy.yaml", tmp_path / "run"
    source.write_text(TOY.format(rows=100, steps=60))
    command = [*COMMAND, "train", source, "--out", run, *["--resume"] * resume]
    if resume:
        assert call("train", source, "--set", "train.steps=60", "--out", run) == 0
    with at_work(*command) as first, at_work(*command) as second:
        done = [(process.communicate(timeout=PATIENCE)[1], process.returncode) for process in (first, second)]
    for line, code in done:
        if code:
            assert "another process trains there" in line or "already holds a run" in line, line
            assert line.count("\n") == 1, line
    assert resume or sorted(code for _, code in done) == [0, 1]
    assert 0 in (code for _, code in done)
    assert arcsm.load(run).features == 2
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


PREAMBLE = """
import os, signal, sys, time, warnings
from pathlib import Path
import torch, arcsm
from arcsm.serialization import save_module
warnings.simplefilter("error")
model = arcsm.AutoregressiveModel(arcsm.MADE(4, 4, (64,)), arcsm.GaussianHead(4))
folder = Path(sys.argv[1])
arcsm.save(model, folder)

def saving():
    child = os.fork()
    if child == 0:
        while True:
            save_module(model, model.config(), folder)  # as arcsm.save, without its checks: most kills hit a write
    return child
"""

WHILE_SAVED = """
child = saving()
try:
    for _ in range(int(sys.argv[2])):
        assert arcsm.load(folder).features == 4
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
finally:
    os.kill(child, signal.SIGKILL)
"""

WHILE_KILLED = """
left = 0
for number in range(int(sys.argv[2])):
    child = saving()
    time.sleep(0.001 * (number % 17))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert arcsm.load(folder).features == 4
    left += len(list(folder.glob(".*.tmp*")))
print(left)
from arcsm._runtime import files
files._remove_leftovers.cache_clear()  # as in a new process
arcsm.save(model, folder)
assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"], list(folder.iterdir())
"""


@pytest.mark.parametrize(
    ("attack", "times"),
    [
        (WHILE_SAVED, 20),
        (WHILE_KILLED, 20),
        pytest.param(WHILE_SAVED, 200, marks=pytest.mark.slow),
        pytest.param(WHILE_KILLED, 50, marks=pytest.mark.slow),
    ],
    ids=["loading", "killing", "loading often", "killing often"],
)
def test_a_model_can_be_read_at_any_moment_of_saving(attack: str, times: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PREAMBLE + attack, str(tmp_path / "model"), str(times)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert attack is WHILE_SAVED or int(done.stdout) > 0  # some were killed while a temporary file was there
