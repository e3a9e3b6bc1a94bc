"""Rows some at a time, with what each is conditioned on, so that memory does not grow with their number."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from arcsm.warning import AccuracyWarning, warn

ROWS = 512  #: rows whose contexts are computed at a time
_KEPT = 31 << 20  # bytes; glibc learns from blocks of up to 32 MiB


def parts_of(n: int, size: int = ROWS) -> Iterator[slice]:
    """Slices of ``n`` rows, none larger than ``size``."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def rows_of(condition: Tensor | None, shape: Sequence[int]) -> Callable[[slice], Tensor | None]:
    """Access to the rows of a condition, which has the batch's leading shape or is shared by all rows."""
    if condition is None:
        return lambda _: None
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


def warn_of_unsure(unsure: int, total: int) -> None:
    """Warn, where some of the conditionals were not integrated as well as was asked for."""
    if unsure:
        warn(
            f"{unsure} of {total} conditionals were not integrated to the tolerance asked for; "
            "raise max_evaluations or tol",
            AccuracyWarning,
        )


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next operation, rather than return it and fetch it again page by page.

    It returns blocks of more than a threshold that grows to the largest block that was ever freed (``mallopt(3)``,
    ``M_MMAP_THRESHOLD``). One large block, freed untouched, spares all tensors of a few megabytes that come after it
    the page faults, which would take longer than the arithmetic. Elsewhere this does nothing.
    """
    torch.empty(_KEPT, dtype=torch.uint8)
