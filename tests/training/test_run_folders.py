"""Runs with mistakes: other data, a second process, a missing model, a damaged log, a disk that cannot lock."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

import arcsm
from arcsm import (
    MADE,
    AutoregressiveModel,
    NoiseLadder,
    ScoreHead,
    TrainConfig,
    fit,
)
from arcsm.data.datasets import load_dataset
from arcsm.training.log import read_metrics
from arcsm.training.run_config import load_config
from arcsm.training.runs import load_run, open_run, warn_if_data_changed
from small_processes import run_in_forks
from small_runs import ON_DATA, PATIENCE, TOY, call


def conditional(**condition: int) -> AutoregressiveModel:
    return AutoregressiveModel(MADE(2, 4, (8,), **condition), ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 4))


def quick(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 4, "batch_size": 16, "device": "cpu", "validate_every": 2, **changes})


def load_run_and_warn(folder: Path) -> None:
    config = load_run(folder).config
    warn_if_data_changed(folder, load_dataset(config.data, config.train.seed))


def test_a_run_resumes_only_with_its_own_data(tmp_path: Path) -> None:
    x = torch.randn(64, 2)
    fit(conditional(), x, config=quick(), run=tmp_path)
    with pytest.raises(ValueError, match="already holds a run; give resume=True"):
        fit(conditional(), x, config=quick(), run=tmp_path)
    for other in (x[:60], x + 1.0):
        with pytest.raises(ValueError, match=rf"started on different data \(64 rows then, {len(other)} now\)"):
            fit(conditional(), other, config=quick(), run=tmp_path, resume=True)
    assert fit(conditional(), x.clone(), config=quick(), run=tmp_path, resume=True).steps == 4


def test_a_file_in_place_of_the_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="run: expected a folder for the run, got a file"):
        fit(conditional(), torch.randn(64, 2), config=quick(), run=tmp_path / "run")


def test_only_one_process_trains_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    quick = ("--set", "train.batch_size=8", "--set", "train.validation_rows=8", "--set", "train.steps=2")
    with FileLock(out / ".lock"):
        assert call("train", "toy-rings", *quick, "--out", out) == 1
    assert "another process trains there" in capsys.readouterr().err
    assert call("train", "toy-rings", *quick, "--out", out) == 0
    assert not (out / ".lock").exists()


def test_a_truncated_log_is_read(tmp_path: Path) -> None:
    whole = "step,loss,valid,learning_rate,seconds\n1,0.5,,0.1,2.0\n"
    for cut in ("", "\0\0\0\0", "2\n", "2,0.4,,x"):
        (tmp_path / "metrics.csv").write_text(whole + cut)
        assert [row["step"] for row in read_metrics(tmp_path)] == [1.0]
    (tmp_path / "metrics.csv").write_text(whole.replace("0.5", "x") + "2,0.4,,0.1,3.0\n")
    with pytest.raises(ValueError, match=r"metrics\.csv: row 1 is not a row of a training log"):
        read_metrics(tmp_path)


def test_changed_data_warn(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 2))
    np.save(tmp_path / "t.npy", rows)
    (tmp_path / "run.yaml").write_text(ON_DATA % f"{{kind: table, path: {tmp_path / 't.npy'}}}")
    assert call("train", tmp_path / "run.yaml", "--out", tmp_path / "run") == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_run_and_warn(tmp_path / "run")
    np.save(tmp_path / "t.npy", rows[::-1])
    with pytest.warns(UserWarning, match="the data have changed since the training"):
        load_run_and_warn(tmp_path / "run")


def test_an_unfinished_run_names_the_command_to_finish_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("name: begun\n")
    assert call("info", tmp_path) == 1
    assert "has no model yet; finish it with: arcsm train" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "resume"), [("metrics.csv", False), ("config.json", True)])
def test_files_that_are_not_of_a_run_are_not_replaced(name: str, resume: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"{name}: exists, but the folder is not a run; choose another folder"):
        fit(conditional(), torch.randn(64, 2), config=quick(), run=tmp_path, resume=resume)
    assert (tmp_path / name).read_text() == "mine"


def test_a_run_that_was_killed_before_a_checkpoint_does_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(TOY.format(rows=100, steps=2))
    arguments, out = ("train", tmp_path / "run.yaml", "--out", tmp_path / "out"), tmp_path / "out"
    config = load_config(str(tmp_path / "run.yaml"))
    with pytest.raises(KeyboardInterrupt), open_run(out, config):
        raise KeyboardInterrupt  # leaves the files of a process that is killed
    assert call(*arguments, "--set", "model.head.hidden_features=[3]") == 0
    (out / "model.safetensors").unlink()
    assert call(*arguments) == 1  # there is a checkpoint
    assert "already holds a run; give --resume" in capsys.readouterr().err
    (out / "state.safetensors").unlink()
    (out / "config.yaml").write_text("# mine\n" + (out / "config.yaml").read_text())
    assert call(*arguments) == 1
    assert "already holds a run; give --resume" in capsys.readouterr().err


def test_a_file_system_without_locks_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / "toy.yaml").write_text(TOY.format(rows=100, steps=2))
    monkeypatch.setattr(fcntl, "flock", fail)
    assert call("train", tmp_path / "toy.yaml", "--out", tmp_path / "run") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"run: its file system cannot lock it ({os.strerror(errno.ENOLCK)}); choose a folder on a disk" in line
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


def test_of_two_processes_in_one_folder_one_trains(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(TOY.format(rows=100, steps=60))
    done = run_in_forks([tmp_path] * 2, [{}, {}], "train", "toy.yaml", "--out", "run")
    assert sorted(code for code, _, _ in done) == [0, 1], done
    for code, _, line in done:
        if code:
            assert "another process trains there" in line or "already holds a run" in line, line
            assert line.count("\n") == 1, line
    run = tmp_path / "run"
    assert arcsm.load(run).features == 2
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
