"""Commands in several processes: the same weights as in one, and a clear end when a process dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher import api

from arcsm import serialization
from arcsm._runtime import launcher, process_group
from arcsm._runtime.launcher import ProcessError
from small_processes import main_address, run_as_srun, run_as_torchrun
from small_runs import COMMAND, PATIENCE, TINY, at_work, call, children_of, wait_until


def weight_difference(a: Path, b: Path) -> float:
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def without_progress(errors: str) -> str:
    """Return the only line that a command wrote besides its progress, as it does every half minute."""
    (line,) = (line for line in errors.splitlines() if not line.startswith("arcsm: training "))
    return line


def wait_for_checkpoint(parent: subprocess.Popen[str], folder: Path, rank: int) -> int:
    """Return the process of a rank once the run has a checkpoint."""
    wait_until((folder / "state.safetensors").exists, parent)
    children = children_of(parent.pid)
    (process,) = (child for child in children if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text())
    return process


def is_alive(process: int) -> bool:
    """Return whether a process runs; one whose exit code nobody has read stays as a zombie."""
    try:
        return ") Z" not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


def test_two_processes_train_to_the_weights_of_one(tmp_path: Path) -> None:
    """Fifteen rows per step make unequal shares. Resuming, sampling and scoring work with any number of processes."""
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY % (20, 1e9))
    assert call("train", config, "--out", tmp_path / "one") == 0
    results = run_as_srun([tmp_path, tmp_path], "train", "tiny.yaml", "--out", "two")
    assert [code for code, _, _ in results] == [0, 0], results
    assert [out.count("trained 20 steps") for _, out, _ in results] == [1, 0]
    assert weight_difference(tmp_path / "one", tmp_path / "two") < 1e-5

    again = ("train", tmp_path / "two" / "config.yaml", "--out", tmp_path / "two", "--resume")
    assert call(*again) == 0  # with another number of processes

    images = tmp_path / "images"
    run_as_torchrun("sample", tmp_path / "two", "-n", 5, "--out", images)
    assert len(list(images.iterdir())) == 5
    pictures = {path.read_bytes() for path in images.iterdir()}
    assert len(pictures) == 5  # processes draw different images
    assert call("score", tmp_path / "two", images, "--out", tmp_path / "1.csv") == 0
    run_as_torchrun("score", tmp_path / "two", images, "--out", tmp_path / "2.csv")
    one, both = (np.loadtxt(tmp_path / f"{n}.csv", delimiter=",", skiprows=1, usecols=(0, 1)) for n in (1, 2))
    assert np.allclose(one, both, rtol=1e-6)
    assert len(one) == 5


@pytest.mark.slow
def test_processes_end_after_their_launcher_is_killed(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY % (100_000, 0))
    with at_work(*COMMAND, "train", tmp_path / "tiny.yaml", "--out", tmp_path / "run", "--devices", 2) as parent:
        children = [wait_for_checkpoint(parent, tmp_path / "run", rank) for rank in range(2)]
        parent.kill()
        parent.wait()
        try:
            end = time.monotonic() + PATIENCE
            while any(is_alive(child) for child in children) and time.monotonic() < end:
                time.sleep(0.1)
            assert not any(is_alive(child) for child in children)
        finally:
            for child in filter(is_alive, children):
                os.kill(child, signal.SIGKILL)
    resumed = ("train", tmp_path / "tiny.yaml", "--out", tmp_path / "run", "--resume", "--set", "train.steps=1")
    assert call(*resumed) == 1


@pytest.mark.slow
def test_killed_process_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY % (100_000, 0))
    with at_work(*COMMAND, "train", tmp_path / "tiny.yaml", "--out", tmp_path / "run", "--devices", 2) as both:
        os.kill(wait_for_checkpoint(both, tmp_path / "run", 1), signal.SIGKILL)
        _, message = both.communicate(timeout=PATIENCE)
    assert both.returncode == 1
    assert without_progress(message).startswith("arcsm: process 1 of the run was ended by SIGKILL; continue with: ")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_terminal_or_scheduler_may_end_launcher_and_processes_at_once(number: int, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY % (100_000, 1e9))
    log = tmp_path / "run" / "metrics.csv"
    with at_work(*COMMAND, "train", tmp_path / "tiny.yaml", "--out", log.parent, "--devices", 2) as both:
        wait_until(lambda: log.is_file() and log.read_text().count("\n") > 1, both)
        children = children_of(both.pid)
        both.send_signal(number)
        for _ in range(20):
            for child in children:
                with suppress(ProcessLookupError):  # it has ended
                    os.kill(child, number)
            time.sleep(0.005)
        _, message = both.communicate(timeout=PATIENCE)
    assert both.returncode == 130
    step = int(without_progress(message).removeprefix("arcsm: interrupted after step ").split(";")[0])
    assert serialization.read_tensors(log.with_name("state.safetensors"))[1]["step"] == step


@pytest.mark.slow
def test_two_machines(tmp_path: Path) -> None:
    """Start two commands of one process each, with a common address."""
    (tmp_path / "tiny.yaml").write_text(TINY % (20, 0))
    address = main_address()
    command = [*COMMAND, "train", tmp_path / "tiny.yaml", "--out", tmp_path / "run", "--nodes", 2]
    with ExitStack() as stack:
        machines = [stack.enter_context(at_work(*command, **address)) for _ in range(2)]
        errors = [machine.communicate(timeout=PATIENCE)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], errors
    assert call("train", tmp_path / "tiny.yaml", "--out", tmp_path / "one") == 0
    assert weight_difference(tmp_path / "run", tmp_path / "one") < 1e-5


def test_signal_handlers_are_restored_after_launch() -> None:
    before = {number: signal.getsignal(number) for number in launcher.HANDLED_SIGNALS}
    with launcher.launcher_environment(2):
        for number in launcher.HANDLED_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # torch installs its own handlers
    assert {number: signal.getsignal(number) for number in launcher.HANDLED_SIGNALS} == before


def test_several_machines_need_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ValueError, match="MASTER_ADDR and MASTER_PORT"):
        launcher.launch(["train", "digits"], 1, 2)


@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        (SignalException("", signal.SIGINT), KeyboardInterrupt, "interrupted after step 3"),
        (ChildFailedError("", {1: ProcessFailure(1, 1, -9, "")}), ProcessError, "process 1 .* was ended by SIGKILL"),
    ],
)
def test_a_launch_ends_as_its_processes_do(
    end: Exception, error: type[BaseException], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretended_launch(config: api.LaunchConfig, _: str) -> Callable[..., None]:
        def start(*arguments: str) -> None:
            assert arguments == ("-m", "arcsm.cli", "train", "digits")
            assert config.nproc_per_node == 2
            report = Path(config.logs_specs.root_log_dir, "error.json")
            report.write_text(json.dumps({"message": "interrupted after step 3"}))
            raise end

        return start

    monkeypatch.setattr(api, "elastic_launch", pretended_launch)
    with pytest.raises(error, match=message):
        launcher.launch(["train", "digits"], 2)
    assert launcher.LAUNCHER_VARIABLE not in os.environ


def test_launched_process_leaves_its_error_to_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error_file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(error_file))
    assert call("info", tmp_path / "none") == 1
    message = capsys.readouterr().err.strip()
    assert not error_file.exists()  # torchrun, which launched it, would not print the message
    monkeypatch.setenv(launcher.LAUNCHER_VARIABLE, "1")
    assert call("info", tmp_path / "none") == 1
    assert capsys.readouterr().err == ""
    assert json.loads(error_file.read_text())["message"] == message


def test_report_names_the_cause_among_failed_processes(capsys: pytest.CaptureFixture[str]) -> None:
    def failure(code: int, at: int, message: str = "") -> SimpleNamespace:
        return SimpleNamespace(exitcode=code, timestamp=1, message=message, error_file_data={"moment": 0.1 * at})

    assert launcher.report_failures({0: failure(1, 2, "second"), 1: failure(2, 1, "first")}) == 2
    assert capsys.readouterr().err == "first\n"
    assert launcher.report_failures({0: failure(1, 1, "a bug,\nat length"), 1: failure(1, 2, "a mistake")}) == 1
    assert capsys.readouterr().err == "a mistake\n"
    assert launcher.report_failures({0: failure(-15, 1), 1: failure(1, 2, "a mistake")}) == 1
    assert capsys.readouterr().err == "a mistake\n"
    for cause in ("the disk is full", process_group.LOST_CONTACT):
        assert launcher.report_failures({0: failure(1, 1, cause), 1: failure(-9, 1200)}) == 1
        assert capsys.readouterr().err == f"{cause}\n"
    with pytest.raises(ProcessError, match="process 1 of the run was ended by SIGKILL"):
        launcher.report_failures({0: failure(1, 95, process_group.LOST_CONTACT), 1: failure(-9, 100)})
    with pytest.raises(ProcessError, match="process 0 of the run was ended by SIGTERM"):
        launcher.report_failures({0: failure(-15, 1)})
    with pytest.raises(ProcessError, match="process 3 of the run was ended by SIGSEGV"):
        launcher.report_failures({0: failure(1, 1, "lost the other"), 3: failure(-11, 2)})
