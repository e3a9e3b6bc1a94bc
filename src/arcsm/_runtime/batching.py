"""Process rows, with their conditions, in slices, so that memory does not grow with the number of rows."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from arcsm._runtime.conditions import Condition, check_type, map_condition
from arcsm._runtime.progress import track
from arcsm._runtime.threads import map_on_threads

T = TypeVar("T")

ROWS = 1024  #: rows whose contexts are computed at a time
_MIN_ROWS = 32  # of a slice that is worth a thread
_MAX_WORKERS = 16  # each allocates its own memory


def slices_of(n: int, size: int = ROWS) -> Iterator[slice]:
    """Yield slices of ``n`` rows, none larger than ``size``."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def slices_for_cores(n: int, size: int, device: torch.device) -> list[slice]:
    """Return slices of ``n`` rows, none larger than ``size``; on a CPU, enough of them to occupy its cores."""
    if device.type == "cpu":
        size = min(size, max(_MIN_ROWS, -(-n // torch.get_num_threads())))
    return list(slices_of(n, size))


def condition_rows(condition: Condition | None, shape: Sequence[int]) -> Callable[[slice], Condition | None]:
    """Return a function from rows to their conditions: one for each of a batch of ``shape``, or one for all of them."""
    if condition is None:
        return lambda _: None
    check_type(condition)

    def flat(part: Tensor) -> Tensor:
        is_vector = part.is_floating_point() and part.ndim
        try:
            expanded = part.expand((*shape, part.shape[-1]) if is_vector else tuple(shape))
        except RuntimeError as error:
            raise ValueError(
                f"condition: expected one for each row {tuple(shape)}, or one for all, got {tuple(part.shape)}"
            ) from error
        return expanded.reshape(-1, *expanded.shape[len(shape) :])

    by_row = map_condition(flat, condition)
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
