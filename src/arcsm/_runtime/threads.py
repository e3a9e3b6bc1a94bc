"""A thread pool that neither errors nor Ctrl-C can deadlock, unlike concurrent.futures.

Executors, and most of :mod:`threading`, hold locks in Python. If a signal handler raises between acquiring such a lock
and the code that releases it, other threads wait forever. Here all waiting happens in C.
"""

import _thread
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def map_on_threads(
    function: Callable[[S], T],
    items: Sequence[S],
    workers: int,
    initializer: Callable[[], object] = lambda: None,
    on_initialized: Callable[[], object] = lambda: None,
    on_result: Callable[[], object] = lambda: None,
) -> list[T]:
    """Apply a function to every item on several threads; return the results in the order of the items.

    Each thread first calls ``initializer``; this one calls ``on_initialized`` once all have, and ``on_result`` once for
    each result. The error of the first item that failed is raised. After an error, or an interruption of this thread,
    no further item is started.
    """
    queue, events = deque(enumerate(items)), SimpleQueue[None]()
    results: dict[int, T] = {}
    errors: dict[int, BaseException] = {}
    started: list[int] = []
    initialized: list[None] = []
    ended: list[None] = []

    def take() -> tuple[int, S] | None:
        try:
            return queue.popleft()
        except IndexError:
            return None

    def work() -> None:
        number = -1
        try:
            initializer()
            initialized.append(None)
            events.put(None)
            for number, item in iter(take, None):
                results[number] = function(item)
                events.put(None)
        except BaseException as error:
            queue.clear()
            errors[number] = error
        finally:
            ended.append(None)
            events.put(None)

    try:
        started.extend(map(_thread.start_new_thread, [work] * workers, [()] * workers))  # in C, so none goes uncounted
        while len(initialized) < workers and len(ended) < workers:
            events.get()
        on_initialized()
        reported = 0
        while len(ended) < workers or reported < len(results):
            if reported < len(results):
                on_result()
                reported += 1
            else:
                events.get()
    finally:
        queue.clear()
        _wait(lambda: len(ended) < len(started), events)
    if errors:
        raise errors[min(errors)]  # earlier items were started before it and succeeded
    return [results[number] for number in range(len(items))]


def _wait(is_running: Callable[[], bool], events: SimpleQueue[None]) -> None:
    """Wait despite interruptions, as Python must not exit while threads run inside C++; then raise the last one."""
    interruption: BaseException | None = None
    while is_running():
        try:
            events.get()
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption
