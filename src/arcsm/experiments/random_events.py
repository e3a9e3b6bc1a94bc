"""Random events in tables: values of a few columns within ranges and sets."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arcsm.experiments.comparisons import Array
from arcsm.experiments.tables import Table

_MOST_COLUMNS = 3  # of an event
_MOST_TRIES = 1_000  # for each event
_ROWS_OF_QUANTILES = 2_000


@dataclass(frozen=True)
class Event:
    """A range ``(low, high)`` of each of some columns of numbers, and a set of levels of each of some columns of names.

    A row with a gap in one of the columns is not in the event.
    """

    ranges: Mapping[int, tuple[float, float]]
    sets: Mapping[int, tuple[int, ...]]

    def holds(self, rows: Array) -> NDArray[np.bool_]:
        """Return which of the rows ``(N, M)`` are in the event."""
        found = np.ones(len(rows), dtype=bool)
        for m, (low, high) in self.ranges.items():
            found &= (rows[:, m] >= low) & (rows[:, m] <= high)
        for m, levels in self.sets.items():
            found &= np.isin(rows[:, m], levels)
        return found

    def probability(self, rows: Array) -> float:
        """Return the share of the rows ``(N, M)`` without gaps in its columns that are in the event."""
        columns = [*self.ranges, *self.sets]
        known = ~np.isnan(rows[:, columns]).any(1)
        return float(self.holds(rows[known]).mean()) if known.any() else 0.0

    def named(self, table: Table) -> dict[str, tuple[float, float] | set[str]]:
        """Return the event by the names of the columns in ``table.frame()``."""
        ranges: dict[str, tuple[float, float] | set[str]] = {f"x{m}": ends for m, ends in self.ranges.items()}
        return ranges | {f"x{m}": {table.names[m][level] for level in levels} for m, levels in self.sets.items()}


def random_events(
    table: Table, rows: Array, count: int, least: float, most: float, random: np.random.Generator
) -> list[Event]:
    """Return random events of one to three columns, whose share of the ``rows (N, M)`` is between two bounds.

    The ends of ranges are quantiles of the table's rows, and sets have random levels that these rows have.
    """
    found = list[Event]()
    for _ in range(_MOST_TRIES * count):
        if len(found) == count:
            break
        chosen = random.choice(
            len(table.names), min(int(random.integers(1, _MOST_COLUMNS + 1)), len(table.names)), False
        )
        event = _random_event(table, chosen.tolist(), random)
        if event is not None and least <= event.probability(rows) <= most:
            found.append(event)
    return found


def _random_event(table: Table, columns: list[int], random: np.random.Generator) -> Event | None:
    ranges, sets = dict[int, tuple[float, float]](), dict[int, tuple[int, ...]]()
    share = random.uniform(0.01, 0.2) ** (1.0 / len(columns))  # of each column
    for m in columns:
        known = table.values[:_ROWS_OF_QUANTILES, m]
        known = known[~np.isnan(known)]
        if table.names[m]:
            levels = np.unique(known).astype(int)
            inside = levels[random.random(len(levels)) < share]
            if not len(inside):
                return None
            sets[m] = tuple(inside.tolist())
        else:
            first = random.uniform(0.0, 1.0 - share)
            low, high = np.quantile(known, [first, first + share], method="nearest")
            ranges[m] = float(low), float(high)
    return Event(ranges, sets)
