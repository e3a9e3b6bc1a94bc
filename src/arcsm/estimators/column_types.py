"""Column types: how the values of a table's column become numbers that a density model can learn.

Fitting a table infers the type of each column. Every type is an invertible map with a known slope, so that a density of
the numbers is also a density of the table's values.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from arcsm.stored_values import stored

Values = NDArray[Any]
Array = NDArray[np.float64]

MAX_LEVELS = 100_000  # a finer grid counts as continuous
MAX_LEVELS_OF_NUMBERS = 16  # by default, a column of numbers with more different values counts as numbers
GRID_TOLERANCE = 0.02  # of a step, between a value and its place on the grid: files round
_REACH_OF_ENDS = 0.1  # of the range of levels: a number that far beyond counts as the last level
SAME_NUMBER = 1e-6  # relative difference up to which a number is a spike, as files round


class Column(ABC):
    """The type of one column: a map from table values to numbers and back. A missing value is NaN as a number."""

    #: Whether the numbers are whole.
    discrete: ClassVar[bool] = False

    @property
    def level_numbers(self) -> Array:
        """The numbers that have a level each in the model, in ascending order; none if it treats them as numbers.

        Larger numbers may share the last level.
        """
        return np.empty(0)

    @property
    @abstractmethod
    def example_numbers(self) -> Array:
        """The numbers of all names, or of the lowest and the highest value of another column."""

    @property
    def shares_of_last_level(self) -> list[float]:
        """The probabilities of the numbers that share the last level in the model, given that level."""
        return [1.0]

    @property
    def log_unseen(self) -> float:
        """The log probability of any value without a level in the model."""
        return 0.0

    def log_share_of_unseen(self, numbers: Array) -> Array:
        """Return the log probability of each number that has no level, given that; 0 if all count as one."""
        return np.zeros_like(numbers)

    @property
    def ends(self) -> tuple[float, float] | None:
        """The ends of the numbers, beyond which none can be drawn; ``None`` for a column without hard ends."""
        return None

    @property
    def exponent_of_map(self) -> float:
        """The exponent of the map of numbers, 1 if it is linear; see :func:`~arcsm.contexts.number_maps.map_values`."""
        return 1.0

    @property
    def spike_numbers(self) -> Array:
        """The numbers that have a probability each, in ascending order; none for a column of levels."""
        return np.empty(0)

    def spike_of(self, numbers: Array) -> NDArray[np.intp]:
        """Return which spike each number ``(*,)`` is, up to rounding, counted from 1; 0 for none."""
        spikes = self.spike_numbers
        if not len(spikes):
            return np.zeros(numbers.shape, dtype=np.intp)
        known = np.nan_to_num(numbers, nan=np.inf)
        nearest = np.searchsorted(0.5 * (spikes[1:] + spikes[:-1]), known)
        tolerance = 0.5 if self.discrete else SAME_NUMBER * (1.0 + np.abs(spikes[nearest]))
        return np.where(np.abs(known - spikes[nearest]) < tolerance, nearest + 1, 0)

    def with_room(self) -> "Column":
        """Return the type with room for values beyond both ends of the range, as far as it is wide.

        It has none beyond a spike at an end, and none below zero if no value is negative.
        """
        return self

    @abstractmethod
    def encode(self, values: Values) -> Array:
        """Return the numbers of table values ``(N,)``."""

    @abstractmethod
    def decode(self, numbers: Array) -> Values:
        """Return the table values of numbers, such as a model's samples."""

    @abstractmethod
    def log_slope(self, numbers: Array) -> Array:
        """Return the log of the slope of :meth:`encode` at the values with these numbers."""

    def nearest(self, values: Array) -> Array:
        """Return the number of the nearest value that the column can have, for each value ``(N,)``; NaN for NaN."""
        return self.rounded(self.encode(values))

    def rounded(self, numbers: Array) -> Array:
        """Return the numbers ``(*,)`` of the nearest steps, if the column has steps."""
        return np.rint(numbers) if self.discrete else numbers

    def allows(self, number: float, value: Any) -> bool:
        """Return whether the column can hold ``value``, which :meth:`encode` maps to ``number``."""
        return math.isfinite(number)


@stored
@dataclass(frozen=True)
class Constant(Column):
    """A column with a single value, which the model does not see; other values have the probability of unseen ones."""

    value: Any
    training_rows: int

    @property
    def example_numbers(self) -> Array:
        return np.zeros(1)

    def encode(self, values: Values) -> Array:
        numbers = np.full(len(values), np.nan)
        present = ~missing_mask(values)
        numbers[present] = [float(not self._equals(value)) for value in values[present]]
        return numbers

    def _equals(self, value: Any) -> bool:
        """Compare with the constant, allowing for fractions that were rounded to single precision."""
        if not isinstance(value, float) or not isinstance(self.value, float) or self.value.is_integer():
            return bool(value == self.value)
        with np.errstate(over="ignore"):
            return value in (self.value, float(np.float32(self.value))) or float(np.float32(value)) == self.value

    def decode(self, numbers: Array) -> Values:
        return repeat(self.value, len(numbers))

    def log_slope(self, numbers: Array) -> Array:
        return np.zeros_like(numbers)

    def allows(self, number: float, value: Any) -> bool:
        return number == 0.0

    def log_prob(self, numbers: Array) -> Array:
        """Return log probabilities in nats, NaN for missing values."""
        unseen = log_prob_of_unseen(self.training_rows)
        return np.where(np.isnan(numbers), np.nan, np.where(numbers > 0.0, unseen, math.log1p(-math.exp(unseen))))


@stored
@dataclass(frozen=True)
class Categories(Column):
    """A categorical column: the number of a category is its rank, and unseen categories share the next.

    The ranks are those of the declared order of an ordered categorical dtype, or else by frequency.
    """

    names: tuple[Any, ...]
    training_rows: int
    rarest: tuple[int, ...] = ()  # numbers of training rows with the last names, which share a level in the model
    ordered: bool = False
    discrete = True

    @property
    def example_numbers(self) -> Array:
        return np.arange(float(len(self.names)))

    @property
    def level_numbers(self) -> Array:
        return np.arange(len(self.names) - len(self.shares_of_last_level) + 1.0)

    @property
    def shares_of_last_level(self) -> list[float]:
        total = sum(self.rarest)
        return [count / total for count in self.rarest] or [1.0]

    @property
    def log_unseen(self) -> float:
        return log_prob_of_unseen(self.training_rows)

    def encode(self, values: Values) -> Array:
        ranks = {name: float(rank) for rank, name in enumerate(self.names)}
        numbers = np.full(len(values), np.nan)
        present = ~missing_mask(values)
        numbers[present] = [ranks.get(value, float(len(self.names))) for value in values[present]]
        return numbers

    def decode(self, numbers: Array) -> Values:
        values = np.empty(len(numbers), dtype=object)
        present = ~np.isnan(numbers)
        ranks = np.clip(np.rint(numbers[present]), 0, len(self.names) - 1).astype(int)
        values[present] = np.array([*self.names, None], dtype=object)[ranks]
        return values

    def log_slope(self, numbers: Array) -> Array:
        return np.zeros_like(numbers)

    def allows(self, number: float, value: Any) -> bool:
        return number < len(self.names)

    def types_differ(self, values: Values) -> bool:
        """Return whether no value is a known category and no value has the type of one."""
        present = values[~missing_mask(values)]
        types = {type(value) for value in present}
        return bool(types) and types.isdisjoint(map(type, self.names)) and set(present).isdisjoint(self.names)


@stored
@dataclass(frozen=True)
class Grid(Column):
    """A discrete column whose values lie on a grid, such as integers. The numbers count steps from the lowest value.

    Where values thin out towards an end of the range, there is room for others beyond it.
    """

    spacing: float
    low: float
    levels: int  # grid points from the lowest to the highest value
    whole: bool  # whether all values are integers
    known: tuple[
        float, ...
    ] = ()  # the training values in order, unless they are integers: a file may have rounded them
    training_rows: int = 0
    few: tuple[float, ...] = ()  # the training values in order, if they are few enough to have a level each
    spikes: tuple[float, ...] = ()  # values far more frequent than those near them, in ascending order
    room: tuple[int, int] = (0, 0)  # steps beyond the lowest and the highest value
    discrete = True

    @property
    def level_numbers(self) -> Array:
        return np.rint(self.encode(np.array(self.few))) if self.few else np.empty(0)

    @property
    def log_unseen(self) -> float:
        return log_prob_of_unseen(self.training_rows)

    @property
    def example_numbers(self) -> Array:
        return np.array([0.0, self.levels - 1.0])

    def near_levels(self, numbers: Array) -> Array:
        """Return the level nearest to each number, NaN if it is far.

        Far is more than the median distance between levels, and beyond the ends more than a tenth of the range, too.
        """
        levels = self.level_numbers
        if len(levels) < 2:
            return np.full_like(numbers, np.nan)
        nearest = levels[np.abs(np.nan_to_num(numbers)[..., None] - levels).argmin(-1)]
        beyond = (numbers < levels[0]) | (numbers > levels[-1])
        gap = float(np.median(np.diff(levels)))
        reach = np.where(beyond, max(gap, _REACH_OF_ENDS * (levels[-1] - levels[0])), gap)
        return np.where(np.abs(numbers - nearest) <= reach, nearest, np.nan)

    def log_share_of_unseen(self, numbers: Array) -> Array:
        """Return log probabilities of whole numbers :math:`d` steps from the nearest level, among all unseen ones.

        They are proportional to :math:`1 / (d (d + 1))`, so that a gross error is less likely than the next number.
        """
        levels = self.level_numbers
        distances = np.abs(np.nan_to_num(numbers)[..., None] - levels).min(-1)
        d = np.maximum(np.ceil(distances - GRID_TOLERANCE), 1.0)
        return -np.log(d) - np.log1p(d) - math.log(self._sum_over_unseen)

    @cached_property
    def _sum_over_unseen(self) -> float:
        """The sum of 1 / (d (d + 1)) over all whole numbers without a level: 1 on either side, and those in gaps."""
        missing = np.diff(self.level_numbers) - 1.0  # numbers in each gap
        half = missing // 2.0
        in_gaps = 2.0 * (1.0 - 1.0 / (half + 1.0)) + (missing % 2.0) / ((half + 1.0) * (half + 2.0))
        return 2.0 + float(in_gaps.sum())

    @property
    def ends(self) -> tuple[float, float] | None:
        first, last = self.limits
        return None if self.few else (first - 0.5, last + 0.5)

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest number that can be drawn."""
        return -self.room[0], self.levels - 1 + self.room[1]

    def with_room(self) -> "Grid":
        steps, numbers = self.levels - 1, self.spike_numbers
        above = 0 if (numbers == steps).any() else steps
        below = 0 if (numbers == 0).any() else min(steps, int(self.low / self.spacing)) if self.low >= 0.0 else steps
        return replace(self, room=(max(below, self.room[0]), max(above, self.room[1])))

    @property
    def spike_numbers(self) -> Array:
        return np.rint(self.encode(np.array(self.spikes)))

    def encode(self, values: Values) -> Array:
        with np.errstate(over="ignore"):
            return (values.astype(float) - self.low) / self.spacing

    def decode(self, numbers: Array) -> Values:
        return self.values_at(np.clip(np.rint(numbers), *self.limits))

    def log_slope(self, numbers: Array) -> Array:
        return np.full_like(numbers, -math.log(self.spacing))

    def allows(self, number: float, value: Any) -> bool:
        first, last = self.limits
        on_grid = first - 0.5 < number < last + 0.5 and abs(number - round(number)) <= GRID_TOLERANCE
        return on_grid and (not self.few or round(number) in self.level_numbers)

    def values_at(self, numbers: Array) -> Values:
        """Return table values without limiting them to the fitted range."""
        values = self.low + self.spacing * numbers
        if not self.whole:
            short = np.array([float(f"{value:.15g}") for value in values])
            return self._snap_to_known(np.where(np.abs(short - values) <= 1e-3 * self.spacing, short, values))
        values = np.rint(values)
        return values.astype(np.int64) if bool((np.abs(values) < 2.0**63).all()) else values  # NaN stays, too

    def _snap_to_known(self, values: Array) -> Array:
        """Replace values by the training values that they equal up to rounding."""
        if not self.known:
            return values
        known = np.asarray(self.known)
        after = np.searchsorted(known, values).clip(1, len(known) - 1)
        nearest = np.where(np.abs(values - known[after - 1]) <= np.abs(values - known[after]), after - 1, after)
        return np.where(np.abs(values - known[nearest]) <= GRID_TOLERANCE * self.spacing, known[nearest], values)


@stored
@dataclass(frozen=True)
class Listed(Grid):
    """A discrete column of repeated values that lie on no grid. The numbers are their places in ascending order.

    A value between two of them has a number between theirs, which no level has. The spacing is the smallest gap.
    """

    def nearest(self, values: Array) -> Array:
        known = np.asarray(self.few)
        places = np.searchsorted(0.5 * (known[1:] + known[:-1]), np.nan_to_num(values, nan=np.inf))
        return np.where(np.isnan(values), np.nan, places)

    def encode(self, values: Values) -> Array:
        numbers = values.astype(float)
        known = np.asarray(self.few)
        nearest = np.nan_to_num(self.nearest(numbers)).astype(int)
        is_known = np.abs(numbers - known[nearest]) <= SAME_NUMBER * (1.0 + np.abs(known[nearest]))
        between = np.searchsorted(known, numbers) - 0.5
        return np.where(np.isnan(numbers), np.nan, np.where(is_known, nearest, between))

    def rounded(self, numbers: Array) -> Array:
        nearest = np.rint(numbers)
        return np.where(np.abs(numbers - nearest) < 0.5, nearest, numbers)  # one between two levels stays

    def near_levels(self, numbers: Array) -> Array:
        return np.full_like(numbers, np.nan)  # one between two levels does not tell which is nearer

    def log_share_of_unseen(self, numbers: Array) -> Array:
        return np.zeros_like(numbers)

    def log_slope(self, numbers: Array) -> Array:
        return np.zeros_like(numbers)

    def values_at(self, numbers: Array) -> Values:
        places = np.clip(np.rint(np.nan_to_num(numbers)), 0, len(self.few) - 1).astype(int)
        return np.where(np.isnan(numbers), np.nan, np.asarray(self.few)[places])


def missing_mask(values: Any) -> NDArray[np.bool_]:
    """Return where values are missing: ``None``, NaN, ``pd.NA`` or ``pd.NaT``."""
    return np.asarray(pd.isna(values), dtype=bool)


def repeat(value: Any, count: int) -> Values:
    """Return an array ``(count,)`` of one value, which may be of any type."""
    if isinstance(value, float | int):
        return np.full(count, value)
    values = np.empty(count, dtype=object)
    values[:] = [value] * count
    return values


def log_prob_of_unseen(count: int) -> float:
    """Return the log probability of a value that does not occur in ``count`` rows."""
    return -math.log(count + 2.0)
