"""Threads return results in order and never deadlock."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from queue import SimpleQueue

import pytest
import torch

from arcsm._runtime.batching import map_slices
from arcsm._runtime.threads import map_on_threads
from small_runs import PATIENCE


def test_results_are_in_the_order_of_the_items() -> None:
    barrier = threading.Barrier(3)
    initialized: list[int] = []
    notified: list[int] = []

    def square(value: int) -> int:
        if value < 3:
            barrier.wait(timeout=PATIENCE)  # passes only with three threads
        return value**2

    results = map_on_threads(
        square,
        range(20),
        3,
        lambda: initialized.append(threading.get_ident()),
        lambda: notified.append(len(initialized)),
    )
    assert results == [value**2 for value in range(20)]
    assert len(set(initialized)) == 3
    assert threading.get_ident() not in initialized
    assert notified == [3]
    assert map_on_threads(square, [], 2) == []


def test_error_of_the_first_failing_item_is_raised() -> None:
    def fail(value: int) -> None:
        if value in (2, 5):
            raise KeyError(value)

    for _ in range(50):
        with pytest.raises(KeyError, match="2"):
            map_on_threads(fail, range(1000), 3)


def test_second_interruption_waits_for_running_threads() -> None:
    running, interrupted, ended = SimpleQueue[None](), [], []
    both_interrupted = threading.Event()

    def work(_: slice) -> None:
        running.put(None)
        assert both_interrupted.wait(PATIENCE)
        ended.append(None)

    def raise_interruption(*_: object) -> None:
        interrupted.append(None)
        raise KeyboardInterrupt

    def interrupt() -> None:
        for _ in range(2):
            running.get(timeout=PATIENCE)
        while len(interrupted) < 2:  # Python heeds a signal in its handler, or just before it waits, with the next one
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.01)
        both_interrupted.set()

    before, cores = signal.signal(signal.SIGINT, raise_interruption), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            map_slices(work, [slice(0, 1)] * 2, torch.device("cpu"))
        assert len(ended) == 2
        assert torch.get_num_threads() == 2
    finally:
        signal.signal(signal.SIGINT, before)
        torch.set_num_threads(cores)


#: Interrupted at random moments.
_INTERRUPTED = """
import random, signal, sys
from arcsm._runtime.threads import map_on_threads

armed, random, at_work = False, random.Random(0), []

def text(number):
    at_work.append(number)
    try:
        return str(number)
    finally:
        at_work.pop()

def interrupt(*_):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
sys.setswitchinterval(1e-5)
interrupted = 0
for _ in range(2500):
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 4e-4))
        try:
            assert map_on_threads(text, range(4), 2) == ["0", "1", "2", "3"]
        finally:
            armed = False
            assert not at_work
    except KeyboardInterrupt:
        interrupted += 1
signal.setitimer(signal.ITIMER_REAL, 0.0)  # one that rang while the interpreter ends would kill it
print(interrupted)
"""


def test_interruption_leaves_no_thread_waiting() -> None:
    command = [sys.executable, "-c", _INTERRUPTED]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert int(finished.stdout) > 0
