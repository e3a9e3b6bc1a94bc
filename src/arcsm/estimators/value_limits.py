"""The ranges of numeric columns in the training rows, without gross errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from arcsm.estimators.column_types import Array, Categories, Column, Grid
from arcsm.estimators.continua import Continuous
from arcsm.estimators.times import counted
from arcsm.stored_values import stored

_MAX_ERRORS = 0.01  # of the values at each end that may be gross errors; at least one value
_MIN_ROWS = 8  # fewer values do not show which are errors


@stored
@dataclass(frozen=True)
class ValueLimits:
    """The lowest and the highest plausible number of each column, ``(M,)`` each; infinite for categories.

    The extreme values at one end are errors if the gap between them and the other values is wider than the range of
    these. They may be one in a hundred values, or a single one.
    """

    low: Array
    high: Array
    next_low: Array  # without the row that has the lowest plausible value
    next_high: Array
    levels: tuple[Array | None, ...]  # the numbers that occur in each discrete column, in order; None if continuous

    @classmethod
    def of_training_rows(cls, numbers: Array, kinds: Sequence[Column]) -> Self:
        """Return the limits of encoded columns ``(N, M)`` of these types."""
        limits = [_column_limits(kind, column) for kind, column in zip(kinds, numbers.T, strict=True)]
        columns = zip(kinds, numbers.T, strict=True)
        levels = [np.unique(column[~np.isnan(column)]) if kind.discrete else None for kind, column in columns]
        low, high, next_low, next_high = np.array(limits).reshape(-1, 4).T
        return cls(low, high, next_low, next_high, tuple(levels))

    def nearest_levels(self, column: int, numbers: Array) -> Array:
        """Return numbers of a column, in a discrete one moved to the nearest number that occurs, ``(K,)``."""
        levels = self.levels[column]
        if levels is None:
            return numbers
        return levels[np.searchsorted(0.5 * (levels[1:] + levels[:-1]), numbers)]

    def of_other_rows(self, numbers: Array) -> tuple[Array, Array]:
        """Return the limits for encoded rows ``(N, M)``, each without the row itself, ``(N, M)`` each."""
        low = np.where(numbers == self.low, self.next_low, self.low)
        return low, np.where(numbers == self.high, self.next_high, self.high)


def _column_limits(kind: Column, numbers: Array) -> tuple[float, float, float, float]:
    numbers = np.sort(numbers[~np.isnan(numbers)])
    if isinstance(kind, Categories) or len(numbers) < _MIN_ROWS:
        return -np.inf, np.inf, -np.inf, np.inf
    kind = counted(kind)
    values = kind.decode(numbers).astype(float) if isinstance(kind, Continuous | Grid) else numbers
    first, last = _count_errors(-values[::-1]), len(values) - _count_errors(values)
    plausible = numbers[first:last]
    return plausible[0], plausible[-1], plausible[1], plausible[-2]


def _count_errors(values: Array) -> int:
    """Return how many of the sorted values are too high."""
    most = max(1, int(_MAX_ERRORS * len(values)))
    counts = np.arange(1, most + 1)
    lowest_error, highest_other = values[-counts], values[-counts - 1]
    isolated = lowest_error - highest_other > highest_other - values[most]
    return int(counts[isolated].max(initial=0))
