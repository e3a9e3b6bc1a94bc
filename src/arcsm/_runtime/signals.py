"""Orderly reactions to Ctrl-C, to SIGTERM, by which schedulers end a job, and to SIGHUP, which a closed terminal sends.

Training stops at the end of a step. Other commands end as on an error, so that no file is left half written.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

_TERMINATION = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_CLEANUP_SECONDS = 2.0  # in which further signals are ignored


class Terminated(BaseException):
    """SIGTERM arrived, from a scheduler or a shell's ``kill``, or SIGHUP, from a terminal that was closed."""


def raise_on_termination() -> None:
    """Make SIGTERM and SIGHUP raise :class:`Terminated` in the main thread.

    Another of them during the clean-up that follows is ignored. A later one raises again, because Python discards an
    exception raised while it finalises an object, and the command would continue.
    """
    last = -_CLEANUP_SECONDS

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if time.monotonic() - last >= _CLEANUP_SECONDS:
            last = time.monotonic()
            raise Terminated

    for number in _heeded(_TERMINATION):
        signal.signal(number, terminate)


def ignore_termination() -> None:
    """Ignore SIGTERM and SIGHUP: the interpreter is exiting and deletes temporary files."""
    for number in _TERMINATION:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_requested(patient: bool = False) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGINT, SIGTERM or SIGHUP has arrived; a second stops the process at once.

    A SIGHUP that is ignored, as ``nohup`` arranges, stays ignored. In any thread but the main one, which alone receives
    signals, the function always returns ``False``.

    Arguments:
        patient: Ignore further signals, also after the block. One of several processes may be signalled both by a
            scheduler and by its launcher, or after it has stopped because another process was signalled; that must not
            destroy what the orderly stop saves.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    interrupted = False
    requested = False  # not a threading.Event: a handler that interrupts the holder of its lock would wait forever

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested and not patient:
            raise KeyboardInterrupt
        requested = True

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, *_heeded(_TERMINATION))}
    try:
        yield lambda: requested
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        if not (patient and (requested or interrupted)):
            for number, handler in previous.items():
                signal.signal(number, handler)


def _heeded(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Return the signals without a SIGHUP that the process was started to ignore."""
    ignored = signal.SIG_IGN
    return [n for n in numbers if n == signal.SIGTERM or signal.getsignal(n) != ignored]
