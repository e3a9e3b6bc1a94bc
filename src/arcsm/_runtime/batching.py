"""Rows some at a time, with what each is conditioned on, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from arcsm._runtime.threads import map_on_threads

T = TypeVar("T")

ROWS = 1024  #: rows whose contexts are computed at a time
_FEWEST_ROWS = 32  # that are worth a thread
_MOST_WORKERS = 16  # as each needs memory of its own


def slices_of(n: int, size: int = ROWS) -> Iterator[slice]:
    """Slices of ``n`` rows, none larger than ``size``."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def slices_for_cores(n: int, size: int, device: torch.device) -> list[slice]:
    """Slices of ``n`` rows, none larger than ``size``; on a processor enough of them for its cores."""
    if device.type == "cpu":
        size = min(size, max(_FEWEST_ROWS, -(-n // torch.get_num_threads())))
    return list(slices_of(n, size))


def condition_rows(condition: Tensor | None, shape: Sequence[int]) -> Callable[[slice], Tensor | None]:
    """Access to the rows of a condition, which has the batch's leading shape or is shared by all rows."""
    if condition is None:
        return lambda _: None
    if not isinstance(condition, Tensor):
        raise ValueError(f"condition: expected a torch.Tensor, got {type(condition).__name__}; use torch.as_tensor")
    dense = condition.is_floating_point()
    wanted = (*shape, condition.shape[-1]) if dense and condition.ndim else tuple(shape)
    try:
        spread = condition.expand(wanted)
    except RuntimeError as error:
        raise ValueError(
            f"condition: expected one for each row {tuple(shape)}, or one for all, got {tuple(condition.shape)}"
        ) from error
    flat = spread.reshape(-1, *spread.shape[len(shape) :])
    return lambda part: flat[part]


def map_slices(function: Callable[[slice], T], parts: Sequence[slice], device: torch.device) -> list[T]:
    """A function of every part, without gradients; on a processor of several cores, a part to a core.

    That beats giving every operation all cores: most are too small to be shared.
    """
    cores = torch.get_num_threads()
    workers = min(cores, len(parts), _MOST_WORKERS)
    # threads inherit neither the caller's autocast nor its gradient mode
    if device.type != "cpu" or workers < 2 or torch.is_autocast_enabled("cpu"):
        with torch.no_grad():
            return [function(part) for part in parts]

    def begin() -> None:
        torch.get_num_threads()  # a thread's first question or operation takes over the number that all begin with
        torch.set_num_threads(max(1, cores // workers))

    def alone(part: slice) -> T:
        with torch.no_grad():
            return function(part)

    def put_back() -> None:
        torch.set_num_threads(cores)  # what a thread sets is also for all threads to come

    try:
        return map_on_threads(alone, parts, workers, begin, put_back)
    finally:
        put_back()
