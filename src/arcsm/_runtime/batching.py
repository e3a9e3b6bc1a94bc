"""Process rows, with their conditions, in slices, so that memory does not grow with the number of rows."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch

from arcsm._runtime.conditions import Condition, flatten_rows, map_condition
from arcsm._runtime.progress import track
from arcsm._runtime.threads import map_on_threads

T = TypeVar("T")

ROWS = 1024  #: rows whose contexts are computed at a time
_MIN_ROWS = 32  # of a slice that is worth a thread
_MAX_WORKERS = 16  # each allocates its own memory


def slices_of(n: int, size: int = ROWS) -> Iterator[slice]:
    """Yield slices of ``n`` rows, none larger than ``size``."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def even_slices(n: int, most: int) -> list[slice]:
    """Return as few slices of ``n`` rows as possible, of nearly equal size and none larger than ``most``."""
    return list(slices_of(n, -(-n // -(-n // most)) if n else 1))


def slices_for_cores(n: int, size: int, device: torch.device) -> list[slice]:
    """Return slices of ``n`` rows, none larger than ``size``; on a CPU, enough of them to occupy its cores."""
    if device.type == "cpu":
        size = min(size, max(_MIN_ROWS, -(-n // torch.get_num_threads())))
    return list(slices_of(n, size))


def condition_rows(condition: Condition | None, batch: int) -> Callable[[slice], Condition | None]:
    """Return a function from rows to their conditions, given one for each row of a batch of ``batch`` dimensions."""
    by_row = None if condition is None else flatten_rows(condition, batch)
    return lambda rows: map_condition(lambda part: part[rows], by_row)


def map_slices(function: Callable[[slice], T], slices: Sequence[slice], device: torch.device) -> list[T]:
    """Apply a function to each slice without gradients; on a CPU, to one slice per core at a time.

    This is faster than giving every operation all cores, because most operations are too small to be shared.
    """
    cores = torch.get_num_threads()
    workers = min(cores, len(slices), _MAX_WORKERS)
    function = torch.no_grad()(function)  # threads inherit neither the caller's gradient mode nor its autocast
    with track("evaluating", len(slices)) as work:
        if device.type != "cpu" or workers < 2 or torch.is_autocast_enabled("cpu"):
            return [function(rows) for rows in work.over(slices)]

        def limit_threads() -> None:
            torch.get_num_threads()  # the first query in a thread resets its number to the global default
            torch.set_num_threads(max(1, cores // workers))

        restore_threads = partial(torch.set_num_threads, cores)  # a thread sets the number of all future threads
        try:
            return map_on_threads(function, slices, workers, limit_threads, restore_threads, work)
        finally:
            restore_threads()
