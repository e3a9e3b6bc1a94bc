"""Small runs, in this process or another, for the tests of training, faults and processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead, TrainConfig
from arcsm.cli import application
from arcsm.training.density import DensityTask
from arcsm.training.task import TrainingTask

#: Seconds after which a process counts as hanging, on a slow and busy machine.
PATIENCE = 240

COMMAND = [sys.executable, "-m", "arcsm.cli"]
TINY = """
name: tiny
data: {kind: digits}
model:
  context: {kind: MADE, hidden_features: [16], context_features: 4}
  head: {kind: ScoreHead, hidden_features: [8]}
  noise: {sigma_max: 1.0, sigma_min: 0.1, levels: 4}
train: {steps: %d, batch_size: 15, validate_every: 10, checkpoint_seconds: %g, standardise: none, device: cpu}
"""

#: A run on a toy set, with numbers that YAML reads as text.
TOY = """
name: tiny
data: {{kind: toy, name: rings, rows: {rows}}}
model:
  context: {{kind: MADE, hidden_features: [8], context_features: 2, residual: "no"}}
  head: {{kind: ScoreHead, hidden_features: [4], data_std: 5e-1}}
  noise: {{sigma_max: 1, sigma_min: 5e-2, levels: 3}}
train: {{steps: {steps}, batch_size: 16, device: cpu}}
"""

#: A run of two steps on any data.
ON_DATA = """
name: small
data: %s
model:
  context: {kind: MADE, hidden_features: [8], context_features: 2}
  head: {kind: ScoreHead, hidden_features: [4]}
  noise: {sigma_max: 1.0, sigma_min: 0.1, levels: 3}
train: {steps: 2, batch_size: 4, device: cpu}
"""


def call(*arguments: object) -> int:
    """Run a command in this process and return its exit code."""
    return application.run([str(argument) for argument in arguments])


def environment(**more: str) -> dict[str, str]:
    """Return this environment without the variables of schedulers, and with one thread."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TORCHELASTIC_"))}
    return {**own, "OMP_NUM_THREADS": "1", **more}


@contextmanager
def at_work(*command: object, cwd: Path | None = None, **more: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a process, which is killed at the end together with its children."""
    texts = [str(part) for part in command]
    process = subprocess.Popen(
        texts, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            for child in children_of(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            process.kill()
        process.communicate(timeout=PATIENCE)


def children_of(parent: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def wait_until(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until a process has made a condition true."""
    end = time.monotonic() + PATIENCE
    while not there():
        if process.poll() is not None:
            raise AssertionError(f"the process ended: {process.communicate()}")
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


# Densities ------------------------------------------------------------------------------------------------------------


def small_density(features: int = 2, seed: int = 0, noise: bool = True) -> AutoregressiveModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        context, head = MADE(features, 4, (16,)), ScoreHead(4, (16, 16))
    return AutoregressiveModel(context, head, NoiseLadder(1.0, 0.1, 5) if noise else None)


def correlated_rows(n: int = 300, seed: int = 1) -> Tensor:
    """Return draws of a normal distribution with means 3 and 0 and covariance ((4, 10), (10, 26))."""
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return torch.stack([3.0 + 2.0 * z[:, 0], 5.0 * z[:, 0] + z[:, 1]], 1)


def short_config(**changes: object) -> TrainConfig:
    """Return a configuration of 30 steps with three validations."""
    return TrainConfig(**{"steps": 30, "batch_size": 64, "device": "cpu", "validate_every": 10, **changes})


def have_same_weights(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(weights, other[name]) for name, weights in a.state_dict().items())


@contextmanager
def before_step(step: int, action: Callable[[Any], object], kind: type[TrainingTask] = DensityTask) -> Iterator[None]:
    """Call a function before an optimizer step of any model of a kind."""
    advance = kind.advance

    def patched(task: TrainingTask) -> float:
        if task.step == step:
            action(task)
        return advance(task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "advance", patched)
        yield


def interrupt(_: object) -> None:
    """Interrupt as a kill would, with nothing written."""
    raise KeyboardInterrupt
