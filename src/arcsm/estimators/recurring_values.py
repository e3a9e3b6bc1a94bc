"""Values of a column of numbers that several rows have, such as round ones, in synthetic rows."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from arcsm.estimators.column_types import Array
from arcsm.estimators.table_model import TableModel
from arcsm.stored_values import stored

_NEAR = 0.005  # of the rows: those that are near a value on either side
_FEWEST_NEAR = 5
_LEAST_SHARE = 0.05  # of new values that recur, below which draws stay as they are
_MOST_ROWS = 50_000


@stored
@dataclass(frozen=True)
class RecurringValues:
    """The values that several rows of a column have, and how often a new row has one of them.

    A density of numbers gives such values no probability of their own. A draw is moved to one with the probability that
    a fitted row near it has it, times the share of new rows whose value has been seen twice: by Good and Turing,
    :math:`1 - N_1 / n - 2 N_2 / n`, where :math:`N_r` values have :math:`r` rows each.

    References:
        The Population Frequencies of Species and the Estimation of Population Parameters (Good, 1953)
    """

    values: Array  # of fitted rows, in ascending order
    recurs: NDArray[np.bool_]  # whether several rows have each of them
    factor: float
    spikes: Array

    @classmethod
    def of_column(cls, numbers: Array, spikes: Array) -> Self | None:
        """Return those of numbers ``(N,)``, leaving out spikes and gaps; ``None`` if too few recur."""
        known = numbers[~np.isnan(numbers) & ~np.isin(numbers, spikes)]
        known = np.sort(known[:: max(1, -(-len(known) // _MOST_ROWS))])  # of a table that may be sorted
        distinct, counts = np.unique(known, return_counts=True)
        seen = 1.0 - float((counts == 1).sum()) / max(len(known), 1)
        seen_twice = seen - 2.0 * float((counts == 2).sum()) / max(len(known), 1)
        if len(distinct) < 2 or seen_twice < _LEAST_SHARE:
            return None
        return cls(known, np.repeat(counts, counts) > 1, seen_twice / seen, spikes)

    def moved(self, numbers: Array, random: np.random.Generator) -> Array:
        """Return drawn numbers ``(N,)``, some of them moved to a value that recurs. Spikes stay as they are."""
        near, end = max(_FEWEST_NEAR, round(_NEAR * len(self.values))), len(self.values) - 1
        rank = np.searchsorted(self.values, numbers)
        low, high = (self.values[np.clip(rank + step, 0, end)] for step in (-near, near))
        reach = 0.5 * (high - low)  # whole groups of rows with one value are within it or not
        first = np.searchsorted(self.values, numbers - reach, "left")
        last = np.searchsorted(self.values, numbers + reach, "right")
        place = np.minimum(first + np.floor(random.random(len(numbers)) * np.maximum(last - first, 1)).astype(int), end)
        is_moved = self.recurs[place] & (random.random(len(numbers)) < self.factor)
        is_moved &= ~np.isin(numbers, self.spikes)
        inside = (numbers >= self.values[0]) & (numbers <= self.values[-1])
        return np.where(is_moved & inside, self.values[place], numbers)


def recurring_values(table: TableModel | None, x: Array) -> dict[int, RecurringValues]:
    """Return the recurring values of encoded rows ``(N, M)``, for each column of numbers that is not near a line."""
    if table is None:
        return {}
    columns, on_line = table.columns, table.columns_on_line
    numeric = [m for m in range(columns.columns) if not columns.counts[m] and m not in on_line]
    spikes = {m: columns.spikes[m].numpy() if m in columns.spikes else np.zeros(0) for m in numeric}
    found = {m: RecurringValues.of_column(x[:, m], spikes[m]) for m in numeric}
    return {m: values for m, values in found.items() if values is not None}
