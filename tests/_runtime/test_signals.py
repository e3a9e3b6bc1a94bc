"""Signals: training stops at the end of a step, other commands at once and cleanly."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from arcsm._runtime import signals
from arcsm._runtime.signals import Terminated, ignore_termination, raise_on_termination, stop_requested


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Restore the handlers of signals after each test, which has those of Python's start."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_second_signal_stops_at_once() -> None:
    with stop_requested() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_closed_terminal_counts_like_a_termination() -> None:
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


def test_a_repeated_signal_interrupts_no_cleanup_and_counts_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts because Python loses an exception that is raised in a finaliser."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    raise_on_termination()
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)
    now += 0.9 * signals._CLEANUP_SECONDS
    signal.raise_signal(signal.SIGTERM)
    now += 0.2 * signals._CLEANUP_SECONDS
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("interruption", ["its own signals", "that of another process"])
def test_one_of_several_processes_counts_all_signals_as_one(interruption: str) -> None:
    if interruption == "its own signals":
        with stop_requested(patient=True) as stop:
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)
            assert stop()
    else:
        with pytest.raises(KeyboardInterrupt), stop_requested(patient=True):
            raise KeyboardInterrupt
    signal.raise_signal(signal.SIGTERM)  # would end the process
