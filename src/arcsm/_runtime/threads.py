"""Threads for one piece of work, of which neither an error nor an interruption leaves any waiting."""

from __future__ import annotations

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
    begin: Callable[[], object] = lambda: None,
    all_begun: Callable[[], object] = lambda: None,
) -> list[T]:
    """A function of every item, some of them at once; what it gives, in their order.

    Executors, and most of :mod:`threading`, hold locks in Python. Where a signal raises (as Ctrl-C does) between the
    taking of such a lock and what would give it back, others wait for it for ever. All that is waited for here is in C.

    Arguments:
        function: Of an item.
        items: What is done once each; who is free takes the next.
        workers: How many threads.
        begin: What each thread does first.
        all_begun: What this thread does when all have done that.

    Raises:
        BaseException: the error of the first item that failed. Items that have not begun by then, or when this thread
            is interrupted, are left.
    """
    left, news = deque(enumerate(items)), SimpleQueue[None]()
    found: dict[int, T] = {}
    failed: dict[int, BaseException] = {}
    started: list[int] = []
    begun: list[None] = []
    ended: list[None] = []

    def take() -> tuple[int, S] | None:
        try:
            return left.popleft()
        except IndexError:
            return None

    def work() -> None:
        number = -1
        try:
            begin()
            begun.append(None)
            news.put(None)
            for number, item in iter(take, None):
                found[number] = function(item)
        except BaseException as error:
            left.clear()
            failed[number] = error
        finally:
            ended.append(None)
            news.put(None)

    try:
        started.extend(map(_thread.start_new_thread, [work] * workers, [()] * workers))  # all in C: each is counted
        while len(begun) < workers and len(ended) < workers:
            news.get()
        all_begun()
        while len(ended) < workers:
            news.get()
    finally:
        left.clear()
        _wait(lambda: len(ended) < len(started), news)
    if failed:
        raise failed[min(failed)]  # those before it have begun earlier, and did not fail
    return [found[number] for number in range(len(items))]


def _wait(goes_on: Callable[[], bool], news: SimpleQueue[None]) -> None:
    """Wait for threads in spite of all interruptions, the last of which is raised then: Python cannot end while they
    are at work in libraries of C++."""
    late: BaseException | None = None
    while goes_on():
        try:
            news.get()
        except BaseException as error:
            late = error
    if late is not None:
        raise late
