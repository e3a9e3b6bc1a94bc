"""Batches in parts and runs in several processes: the same noise, the same weights, and a clear end where one dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from arcsm import (
    MADE,
    AutoregressiveModel,
    GaussianHead,
    LogisticMixtureHead,
    NoiseLadder,
    PixelCNNPP,
    ScoreHead,
    TrainConfig,
    fit,
    objectives,
    serialization,
)
from arcsm._runtime import processes
from arcsm._runtime.processes import Group, ProcessError, shares
from arcsm._runtime.random import Share, Source, normal_like, rademacher_like, stratified_uniform_like, uniform_like
from arcsm.cli import application
from small_runs import COMMAND, PATIENCE, TINY, at_work, children_of, environment, wait_until


def run(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *(str(argument) for argument in arguments)]
    return subprocess.run(
        command, env=environment(**more), capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def here(*arguments: object) -> int:
    """The command in this process, which is quicker."""
    return application.run([str(argument) for argument in arguments])


def difference(a: Path, b: Path) -> float:
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return max(float((first[name] - second[name]).abs().max()) for name in first)


# Draws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [normal_like, uniform_like, rademacher_like, stratified_uniform_like])
def test_shares_of_a_batch_get_what_the_whole_batch_gets(draw: Callable[[Tensor, Source], Tensor]) -> None:
    x = torch.zeros(11, 3, dtype=torch.float64)
    whole = draw(x, torch.Generator().manual_seed(3))
    parts = [draw(x[part], Share(torch.Generator().manual_seed(3), 11, part.start)) for part in shares(11, 4)]
    assert torch.allclose(torch.cat(parts), whole, rtol=0.0, atol=1e-12)
    assert len(whole.unique()) > 1


def build(head: Any = None, context: Any = None, **noise: Any) -> AutoregressiveModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        context = context() if context else MADE(3, 4, (16,))
        head = head() if head else ScoreHead(4, (8,))
    return AutoregressiveModel(context, head, NoiseLadder(1.0, 0.1, 4, **noise))


OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "csm": lambda *a, **k: objectives.csm(*a, mix=0.3, **k),
    "dsm": objectives.dsm,
    "dsm at one sigma": lambda *a, **k: objectives.dsm(*a, sigma=0.2, **k),
    "ssm": lambda *a, **k: objectives.ssm(*a, slices=2, **k),
    "ssm by a sphere": lambda *a, **k: objectives.ssm(*a, projections="sphere", **k),
    "sm": objectives.sm,
    "mle": objectives.mle,
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("continuous", [False, True])
def test_the_gradient_of_parts_is_that_of_the_batch(name: str, continuous: bool) -> None:
    model = build(continuous=continuous).double()
    x = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def gradient(sources: list[tuple[slice, Source]]) -> list[Tensor]:
        model.zero_grad()
        for part, source in sources:
            loss = OBJECTIVES[name](model, x[part], generator=source) * (len(x[part]) / len(x))
            loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole = gradient([(slice(0, 10), torch.Generator().manual_seed(5))])
    inner = [(part, Share(torch.Generator().manual_seed(5), 10, part.start)) for part in shares(10, 3)]
    assert len(whole) == len(list(model.parameters()))
    for a, b in zip(whole, gradient(inner), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)
    other = [(part, torch.Generator().manual_seed(5)) for part in shares(10, 3)]  # each as if it were a batch
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(whole, gradient(other), strict=True))


MODELS: dict[str, Callable[[], AutoregressiveModel]] = {
    "scores": build,
    "gaussian": lambda: build(lambda: GaussianHead(4)),
    "mixture": lambda: build(lambda: LogisticMixtureHead(4)),
    "missing": lambda: build(context=lambda: MADE(3, 4, (16,), missing=True)),
    "residual": lambda: build(context=lambda: MADE(3, 4, (16, 16), residual=True)),
    "images": lambda: build(context=lambda: PixelCNNPP((1, 4, 4), 4, nr_filters=4, nr_resnet=1)),
    "colours": lambda: build(context=lambda: PixelCNNPP((3, 4, 4), 4, nr_filters=4, nr_resnet=1)),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_has_a_gradient_as_processes_that_share_it_expect(name: str) -> None:
    model = MODELS[name]()
    x = torch.randn(6, model.features, generator=torch.Generator().manual_seed(1))
    objectives.csm(model, x, mix=0.3, generator=torch.Generator().manual_seed(2)).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["scores", "colours"])
@pytest.mark.parametrize("accumulate", [2, 5])
def test_accumulated_gradients_train_to_the_same_weights(name: str, accumulate: int) -> None:
    x = torch.randn(40, MODELS[name]().features, generator=torch.Generator().manual_seed(1))
    found = []
    for parts in (1, accumulate):
        model = MODELS[name]()
        config = TrainConfig(steps=12, batch_size=16, device="cpu", dequantise=0.1, accumulate=parts)
        result = fit(model, x, x, config)
        found.append((result.best_loss, model.state_dict()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for key, weights in found[0][1].items():
        assert torch.allclose(weights, found[1][1][key], rtol=0.0, atol=1e-5), key


def test_more_parts_than_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match="batch_size: 4 rows cannot be divided into 5 parts"):
        fit(build(), torch.randn(8, 3), config=TrainConfig(steps=1, batch_size=4, accumulate=5, device="cpu"))


def test_shares_are_even_and_in_order() -> None:
    assert [range(11)[part] for part in shares(11, 4)] == [range(2), range(2, 5), range(5, 8), range(8, 11)]
    assert Group(1, 3).share(10) == slice(3, 6)
    assert Group().share(10) == slice(0, 10)


def test_each_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_a_machine_with_gpus(name: str | torch.device) -> torch.device:
        """What torch makes of a name there: without a number it is the first one."""
        device = torch.device("cuda" if name == "auto" else name)
        return torch.device("cuda", device.index or 0) if device.type == "cuda" else device

    monkeypatch.setattr(processes, "resolve_device", on_a_machine_with_gpus)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    second = Group(rank=5, size=8, local_rank=1, local_size=4)
    for name, own in (("auto", "cuda:1"), ("cuda", "cuda:1"), ("cpu", "cpu")):
        assert second.device(name) == torch.device(own)
    assert Group().device("auto") == torch.device("cuda:0")
    assert Group().device("cuda:3") == torch.device("cuda:3")
    with pytest.raises(ValueError, match="8 processes cannot share cuda:3"):
        second.device("cuda:3")
    with pytest.raises(ValueError, match="5 processes on this machine, which has 4 GPUs"):
        Group(rank=4, size=5, local_rank=4, local_size=5).device("cuda")


# Processes ----------------------------------------------------------------------------------------------------------


def test_two_processes_train_to_the_weights_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    """Fifteen rows a step, so that the shares differ; then the same two score and draw, and one goes on."""
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY % (20, 0))
    assert here("train", config, "--out", tmp_path / "one") == 0
    two = run("train", config, "--out", tmp_path / "two", "--devices", 2)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("trained 20 steps") == 1
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-5

    again = ("train", tmp_path / "two" / "config.yaml", "--out", tmp_path / "two", "--resume")
    assert here(*again) == 0  # by another number of processes

    images = tmp_path / "images"
    drawn = run("sample", tmp_path / "two", "-n", 5, "--out", images, "--devices", 2)
    assert drawn.returncode == 0, drawn.stderr
    assert len(list(images.iterdir())) == 5
    pictures = {path.read_bytes() for path in images.iterdir()}
    assert len(pictures) == 5  # each process drew others
    assert here("score", tmp_path / "two", images, "--out", tmp_path / "1.csv") == 0
    scored = run("score", tmp_path / "two", images, "--out", tmp_path / "2.csv", "--devices", 2)
    assert scored.returncode == 0, scored.stderr
    one, both = (np.loadtxt(tmp_path / f"{n}.csv", delimiter=",", skiprows=1, usecols=(0, 1)) for n in (1, 2))
    assert np.allclose(one, both, rtol=1e-6)
    assert len(one) == 5


def as_srun_would(folders: list[Path], *arguments: str) -> list[tuple[int, str, str]]:
    """Two of the command, told their numbers in the environment, each in a folder: exit codes and what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "x", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    slurm |= {"SLURM_NNODES": "1", "SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with ExitStack() as stack:
        both = [
            stack.enter_context(
                at_work(*COMMAND, *arguments, cwd=folder, **slurm, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
            )
            for rank, folder in enumerate(folders)
        ]
        said = [process.communicate(timeout=PATIENCE) for process in both]
        return [(process.returncode, *texts) for process, texts in zip(both, said, strict=True)]


def test_processes_that_a_scheduler_starts_find_each_other(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY % (20, 0))
    found = as_srun_would([tmp_path, tmp_path], "train", "tiny.yaml", "--out", "run")
    assert [code for code, _, _ in found] == [0, 0], found
    assert [out.count("trained 20 steps") for _, out, _ in found] == [1, 0]


@pytest.mark.slow
def test_one_that_fails_alone_says_why_and_the_other_that_it_is_gone(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        (folder / "tiny.yaml").write_text((TINY % (20, 0)).replace("{kind: digits}", "{kind: table, path: rows.csv}"))
    np.savetxt(folders[0] / "rows.csv", np.random.default_rng(0).normal(size=(80, 3)), delimiter=",")
    (code, _, first), (other, _, second) = as_srun_would(folders, "train", "tiny.yaml", "--out", "run")
    assert (code, other) == (1, 1)
    assert second.strip().splitlines() == ["arcsm: rows.csv: expected a file, but it does not exist"]
    assert first.strip().splitlines() == ["arcsm: another process of the run has ended; see what it said"]


@pytest.mark.slow
def test_processes_that_would_not_do_the_same_all_stop(tmp_path: Path) -> None:
    """One sees a run that it is to go on with, and the other does not."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        (folder / "tiny.yaml").write_text(TINY % (20, 0))
    assert here("train", folders[1] / "tiny.yaml", "--out", folders[1] / "run") == 0
    found = as_srun_would(folders, "train", "tiny.yaml", "--out", "run", "--resume")
    for code, _, said in found:
        assert code == 1
        assert said.strip() == (
            "arcsm: steps, data or weights of the processes differ; do all of them see the same files?"
        )


@pytest.mark.slow
def test_processes_whose_starter_was_killed_end(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY % (100_000, 0))
    with at_work(*COMMAND, "train", tmp_path / "tiny.yaml", "--out", tmp_path / "run", "--devices", 2) as starter:
        children = [wait_for_step(starter, tmp_path / "run", rank) for rank in range(2)]
        starter.kill()
        starter.wait()
        try:
            end = time.monotonic() + PATIENCE
            while any(is_alive(child) for child in children) and time.monotonic() < end:
                time.sleep(0.1)
            assert not any(is_alive(child) for child in children)
        finally:
            for child in filter(is_alive, children):
                os.kill(child, signal.SIGKILL)
    assert here("train", tmp_path / "tiny.yaml", "--out", tmp_path / "run", "--resume", "--set", "train.steps=1") == 1


def test_a_script_that_was_started_several_times_is_alone_unless_it_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert processes.was_started()
    assert processes.group() == Group()
    fit(build(), torch.randn(8, 3), config=TrainConfig(steps=1, batch_size=4, device="cpu"))  # waits for nobody
    with pytest.raises(ValueError, match="--ntasks-per-node is needed"):
        processes.join()
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert not processes.was_started()


@pytest.mark.parametrize(
    "started",
    [{"SLURM_STEP_NUM_TASKS": "3"}, {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "3"}],
    ids=["srun", "torchrun"],
)
def test_commands_that_work_alone_refuse_to_be_started_several_times(
    started: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    assert processes.process_count() == 3
    assert here("report", "nowhere") == 1
    assert "report: runs in one process, but 3 were started" in capsys.readouterr().err
    assert here("--version") == 0
    for name in started:
        monkeypatch.delenv(name)
    assert here("report", "nowhere") == 1
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.slow
def test_a_mistake_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text((TINY % (20, 0)).replace("{kind: digits}", "{kind: table, path: nowhere.csv}"))
    failed = run("train", tmp_path / "tiny.yaml", "--out", tmp_path / "run", "--devices", 2)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines() == ["arcsm: nowhere.csv: expected a file, but it does not exist"]


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_the_run_which_one_alone_goes_on_with(rank: int, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY % (500, 0))
    folder = tmp_path / "run"
    with at_work(*COMMAND, "train", tmp_path / "tiny.yaml", "--out", folder, "--devices", 2) as both:
        os.kill(wait_for_step(both, folder, rank), signal.SIGKILL)
        _, said = both.communicate(timeout=PATIENCE)
    assert both.returncode == 1
    lines = said.strip().splitlines()
    assert len(lines) == 1, said
    assert lines[0].startswith(f"arcsm: process {rank} of the run was ended by SIGKILL; continue with: arcsm train ")
    assert here(*lines[0].split("continue with: arcsm ")[1].split()) == 0
    assert here("train", tmp_path / "tiny.yaml", "--out", tmp_path / "whole") == 0
    assert difference(folder, tmp_path / "whole") < 1e-4


def wait_for_step(starter: subprocess.Popen[str], folder: Path, rank: int) -> int:
    """The process of a rank, once the run has a checkpoint."""
    wait_until((folder / "state.safetensors").exists, starter)
    children = children_of(starter.pid)
    (of_rank,) = (one for one in children if f"\0RANK={rank}\0" in Path(f"/proc/{one}/environ").read_text())
    return of_rank


def is_alive(process: int) -> bool:
    """Whether it runs; one that nobody asks for its exit code stays as a zombie."""
    try:
        return ") Z" not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


def test_ctrl_c_ends_all_after_the_same_step(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY % (100_000, 0))
    folder = tmp_path / "run"
    with at_work(*COMMAND, "train", tmp_path / "tiny.yaml", "--out", folder, "--devices", 2) as both:
        wait_for_step(both, folder, 0)
        both.send_signal(signal.SIGINT)
        _, said = both.communicate(timeout=PATIENCE)
    assert both.returncode == 130
    assert said.count("continue with: arcsm train") == 1
    step = int(said.removeprefix("arcsm: interrupted after step ").split(";")[0])
    assert serialization.read_tensors(folder / "state.safetensors")[1]["step"] == step


def test_a_scheduler_may_end_starter_and_started_at_once(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY % (100_000, 1e9))
    log = tmp_path / "run" / "metrics.csv"
    with at_work(*COMMAND, "train", tmp_path / "tiny.yaml", "--out", log.parent, "--devices", 2) as both:
        wait_until(lambda: log.is_file() and log.read_text().count("\n") > 1, both)
        children = children_of(both.pid)
        both.send_signal(signal.SIGTERM)
        for _ in range(20):
            for child in children:
                with suppress(ProcessLookupError):  # has ended
                    os.kill(child, signal.SIGTERM)
            time.sleep(0.005)
        _, said = both.communicate(timeout=PATIENCE)
    assert both.returncode == 130
    step = int(said.removeprefix("arcsm: interrupted after step ").split(";")[0])
    assert serialization.read_tensors(log.with_name("state.safetensors"))[1]["step"] == step


@pytest.mark.slow
def test_two_machines(tmp_path: Path) -> None:
    """Two commands of one process each, at one address."""
    (tmp_path / "tiny.yaml").write_text(TINY % (20, 0))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*COMMAND, "train", tmp_path / "tiny.yaml", "--out", tmp_path / "run", "--nodes", 2]
    with ExitStack() as stack:
        machines = [
            stack.enter_context(at_work(*command, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))) for _ in range(2)
        ]
        said = [machine.communicate(timeout=PATIENCE)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert here("train", tmp_path / "tiny.yaml", "--out", tmp_path / "one") == 0
    assert difference(tmp_path / "run", tmp_path / "one") < 1e-5


def test_an_autoencoder_trains_in_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert here("train", "vae-mnist", "--devices", 2) == 1
    assert "uses one process" in capsys.readouterr().err


def test_signals_are_handled_as_before_once_processes_have_ended() -> None:
    before = {number: signal.getsignal(number) for number in processes._HANDLED}
    with processes._as_starter(2):
        for number in processes._HANDLED:
            signal.signal(number, signal.SIG_IGN)  # as torch does with handlers of its own
    assert {number: signal.getsignal(number) for number in processes._HANDLED} == before


def test_several_machines_need_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ValueError, match="MASTER_ADDR and MASTER_PORT"):
        processes.start(["train", "digits"], 1, 2)


def test_a_started_process_leaves_its_error_to_the_one_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(left))
    assert here("info", tmp_path / "none") == 1
    said = capsys.readouterr().err.strip()
    assert not left.exists()  # torchrun started it, which does not say what is left there
    monkeypatch.setenv(processes._STARTED, "1")
    assert here("info", tmp_path / "none") == 1
    assert capsys.readouterr().err == ""
    assert json.loads(left.read_text())["message"] == said


def test_what_is_said_of_processes_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    def failure(code: int, at: int, message: str = "") -> SimpleNamespace:
        return SimpleNamespace(exitcode=code, timestamp=1, message=message, error_file_data={"moment": 0.1 * at})

    assert processes._explain({0: failure(1, 2, "second"), 1: failure(2, 1, "first")}) == 2
    assert capsys.readouterr().err == "first\n"
    assert processes._explain({0: failure(1, 1, "a bug,\nat length"), 1: failure(1, 2, "a mistake")}) == 1
    assert capsys.readouterr().err == "a mistake\n"
    assert processes._explain({0: failure(-15, 1), 1: failure(1, 2, "a mistake")}) == 1
    assert capsys.readouterr().err == "a mistake\n"
    for cause in ("the disk is full", processes.LOST_CONTACT):  # and what it says of another machine
        assert processes._explain({0: failure(1, 1, cause), 1: failure(-9, 1200)}) == 1
        assert capsys.readouterr().err == f"{cause}\n"
    with pytest.raises(ProcessError, match="process 1 of the run was ended by SIGKILL"):
        processes._explain({0: failure(1, 95, processes.LOST_CONTACT), 1: failure(-9, 100)})
    with pytest.raises(ProcessError, match="process 0 of the run was ended by SIGTERM"):
        processes._explain({0: failure(-15, 1)})
    with pytest.raises(ProcessError, match="process 3 of the run was ended by SIGSEGV"):
        processes._explain({0: failure(1, 1, "lost the other"), 3: failure(-11, 2)})
