"""Signals: training stops at the end of a step, other commands at once and cleanly."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from arcsm._runtime import signals
from arcsm._runtime.signals import Terminated, ignore_termination, raise_on_termination, stop_requested


def test_a_second_signal_stops_at_once() -> None:
    with stop_requested() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Restore the handlers of signals after each test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_closed_terminal_counts_like_a_termination() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with stop_requested() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    raise_on_termination()
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGHUP)
    ignore_termination()
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGTERM)


def test_a_closed_terminal_is_ignored_under_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise_on_termination()
    signal.raise_signal(signal.SIGHUP)
    with stop_requested() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_repeated_signal_does_not_interrupt_the_cleanup() -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []
    try:
        raise_on_termination()
        signal.raise_signal(signal.SIGTERM)
    except Terminated:
        signal.raise_signal(signal.SIGTERM)
        cleaned.append(True)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert cleaned == [True]


def test_a_signal_lost_in_a_finaliser_counts_when_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dropped:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    monkeypatch.setattr(signals, "_CLEANUP_SECONDS", 0.05)
    try:
        raise_on_termination()
        Dropped()
        assert len(lost) == 1
        time.sleep(0.1)
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_one_of_several_processes_counts_all_signals_as_one() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with stop_requested(patient=True) as stop:
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)
            assert stop()
        signal.raise_signal(signal.SIGTERM)  # would end the process
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    with stop_requested(patient=True):
        pass
    assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
    try:
        with pytest.raises(KeyboardInterrupt), stop_requested(patient=True):
            raise KeyboardInterrupt  # as after a signal to another process
        signal.raise_signal(signal.SIGTERM)  # would end the process
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_PATIENT = """
import sys
from arcsm._runtime import signals
from arcsm._runtime.signals import stop_requested

with stop_requested(patient=True) as stop:
    print("ready", flush=True)
    sys.stdin.read()
    print(stop())
"""


def test_a_signal_may_arrive_during_the_handler_of_another() -> None:
    """By chance: what takes a lock in its handler comes through sometimes."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", _PATIENT], text=True, **pipes) as patient:
        assert patient.stdout is not None
        assert patient.stdout.readline() == "ready\n"
        for _ in range(10_000):  # some of them while the handler runs
            patient.send_signal(signal.SIGTERM)
            time.sleep(1e-5)
        try:
            output, errors = patient.communicate(timeout=60)
        finally:
            patient.kill()
    assert (output, errors) == ("True\n", "")
