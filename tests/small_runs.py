"""The command in a process of its own, and a run of seconds, for the tests of faults and of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Seconds until a process is taken to hang, on a machine that is slow and busy.
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

#: A run of two steps on data of one's own.
ON_DATA = """
name: small
data: %s
model:
  context: {kind: MADE, hidden_features: [8], context_features: 2}
  head: {kind: ScoreHead, hidden_features: [4]}
  noise: {sigma_max: 1.0, sigma_min: 0.1, levels: 3}
train: {steps: 2, batch_size: 4, device: cpu}
"""


def environment(**more: str) -> dict[str, str]:
    """The environment on one thread, as if no scheduler had started the tests."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TORCHELASTIC_"))}
    return {**own, "OMP_NUM_THREADS": "1", **more}


@contextmanager
def at_work(*command: object, cwd: Path | None = None, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A process of its own, which is ended at last, with those that it has started."""
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
    """Wait for something that a process does."""
    end = time.monotonic() + PATIENCE
    while not there():
        if process.poll() is not None:
            raise AssertionError(f"it ended before: {process.communicate()}")
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)
