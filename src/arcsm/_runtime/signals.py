"""Orderly reactions to Ctrl-C and to SIGTERM, by which schedulers end a job.

Training stops at the end of a step. Other commands end as on an error, so that no file is left half written.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CLEANUP_SECONDS = 2.0  # in which further signals are ignored


class Terminated(BaseException):
    """SIGTERM arrived, from a scheduler or a shell's ``kill``."""


def raise_on_sigterm() -> None:
    """Make SIGTERM raise :class:`Terminated` in the main thread.

    Another SIGTERM during the clean-up that follows is ignored. A later one raises again, because Python discards an
    exception raised while it finalises an object, and the command would continue.
    """
    last = -_CLEANUP_SECONDS

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if time.monotonic() - last >= _CLEANUP_SECONDS:
            last = time.monotonic()
            raise Terminated

    signal.signal(signal.SIGTERM, terminate)


@contextmanager
def stop_requested(patient: bool = False) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGINT or SIGTERM has arrived; a second signal stops the process at once.

    In any thread but the main one, which alone receives signals, the function always returns ``False``.

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

    previous = {number: signal.signal(number, request) for number in _SIGNALS}
    try:
        yield lambda: requested
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        if not (patient and (requested or interrupted)):
            for number, handler in previous.items():
                signal.signal(number, handler)
