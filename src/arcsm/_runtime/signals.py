"""Stopping where nothing is lost: Ctrl-C, and the signal by which schedulers end a job.

Training waits for the end of a step; other commands end as by an error, so that no file is left half written.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CLEANING_UP = 2.0  # seconds in which it is not asked again


class Terminated(BaseException):
    """A scheduler, or a shell's ``kill``, has asked the process to end."""


def raise_on_sigterm() -> None:
    """Let the signal ``TERM`` raise :class:`Terminated` in the main thread.

    What follows is not cut short by another that comes soon. A later one counts again: an exception that is raised
    while Python drops an object is lost, and the command would go on.
    """
    last = -_CLEANING_UP

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if time.monotonic() - last >= _CLEANING_UP:
            last = time.monotonic()
            raise Terminated

    signal.signal(signal.SIGTERM, end)


@contextmanager
def stop_requested(patient: bool = False) -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether to stop; asked a second time, the process stops at once.

    A ``patient`` one does not, and is not to be ended by it afterwards either: one of several processes may be asked
    both by a scheduler and by what started it. It may also be asked after it has stopped because another was. The
    second word must not cost what the first one saves.

    In another thread than the main one, which alone may watch signals, the answer is always no.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    stopping = False
    asked = False  # no threading.Event: a signal may come while an earlier one holds its lock, and would wait forever

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and not patient:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        yield lambda: asked
    except KeyboardInterrupt:
        stopping = True
        raise
    finally:
        if not (patient and (asked or stopping)):
            for number, handler in before.items():
                signal.signal(number, handler)
