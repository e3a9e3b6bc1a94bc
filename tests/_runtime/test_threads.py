"""Threads return results in order and never deadlock."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from arcsm._runtime import threads
from arcsm._runtime.threads import map_on_threads


def test_results_are_in_the_order_of_the_items() -> None:
    barrier = threading.Barrier(3)
    initialized: list[int] = []
    notified: list[int] = []

    def square(value: int) -> int:
        if value < 3:
            barrier.wait(timeout=60)  # passes only with three threads
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
    calls = []

    def fail(value: int) -> None:
        calls.append(value)
        if value in (2, 5):
            raise KeyError(value)

    for _ in range(50):
        with pytest.raises(KeyError, match="2"):
            map_on_threads(fail, range(1000), 3)
    assert len(calls) < 50 * 1000  # remaining items were not started


def test_error_of_an_initializer_is_raised() -> None:
    def initializer() -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        map_on_threads(str, range(10), 2, initializer)


def test_error_of_starting_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threads._thread.start_new_thread, []

    def start_once(*arguments: object) -> int:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(arguments)
        return start(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(threads._thread, "start_new_thread", start_once)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        map_on_threads(str, range(10), 2)


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

#: Interrupted again while it waits for threads that run inside torch.
_TWICE = """
import signal, threading, time, torch
from arcsm._runtime.batching import map_slices

def work(part):
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        torch.ones(300, 300) @ torch.ones(300, 300)

def interrupt():
    for _ in range(2):
        time.sleep(0.4)
        signal.raise_signal(signal.SIGINT)

torch.set_num_threads(2)
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=interrupt).start()
try:
    map_slices(work, [slice(0, 1)] * 2, torch.device("cpu"))
except KeyboardInterrupt:
    print("interrupted", torch.get_num_threads())
"""


def test_second_interruption_waits_for_running_threads() -> None:
    finished = subprocess.run([sys.executable, "-c", _TWICE], capture_output=True, text=True, timeout=300, check=False)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "interrupted 2\n", "")


def test_interruption_leaves_no_thread_waiting() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True, timeout=300, check=False
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert int(finished.stdout) > 100
