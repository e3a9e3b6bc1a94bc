"""Slices in threads that fail."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest
import torch

from arcsm._runtime.batching import map_slices
from arcsm._runtime.signals import Terminated

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


def test_pending_slices_are_cancelled_after_an_error() -> None:
    started = []

    def part(rows: slice) -> None:
        started.append(rows)
        time.sleep(0.0 if len(started) == 1 else 0.05)
        raise Terminated

    with pytest.raises(Terminated):
        map_slices(part, [slice(0, 1)] * 200, CPU)
    assert len(started) < 200


def test_a_slice_that_fails_at_once_leaves_no_waiting_thread() -> None:
    """Threads give way after a microsecond, so that some are still on their way when the first part fails."""

    def part(rows: slice) -> None:
        raise KeyError(rows.start)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(100):
            with pytest.raises(KeyError, match="0"):
                map_slices(part, [slice(0, 1), slice(1, 2)], CPU)
            assert torch.get_num_threads() == 3
    finally:
        sys.setswitchinterval(interval)
