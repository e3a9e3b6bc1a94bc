"""Slices in threads that fail."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from arcsm._runtime.batching import map_slices
from arcsm._runtime.signals import Terminated


def test_pending_slices_are_cancelled_after_an_error() -> None:
    started = []

    def part(rows: slice) -> None:
        started.append(rows)
        time.sleep(0.0 if len(started) == 1 else 0.05)
        raise Terminated

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(Terminated):
            map_slices(part, [slice(0, 1)] * 200, torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
    assert len(started) < 200


#: Threads give way after a microsecond, so that some are still on their way when the first part fails.
_FAILS_AT_ONCE = """
import sys, torch
from arcsm._runtime.batching import map_slices

def part(rows):
    raise KeyError(rows.start)

torch.set_num_threads(3)
sys.setswitchinterval(1e-6)
for _ in range(300):
    try:
        map_slices(part, [slice(0, 1), slice(1, 2)], torch.device("cpu"))
    except KeyError as error:
        assert error.args == (0,)
print(torch.get_num_threads())
"""


def test_a_slice_that_fails_at_once_leaves_no_waiting_thread() -> None:
    command = [sys.executable, "-c", _FAILS_AT_ONCE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
