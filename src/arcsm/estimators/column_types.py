"""The kinds of columns of a table, each by what makes numbers of it that a density model wants.

A column gets one of a few kinds when a table is fitted. Each is a map that is known in both directions, so that
densities are those of the table's own values: the log slope of the map belongs to them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[Any]
Numbers = NDArray[np.float64]

_REPEATED = 0.05  # share of the values that others repeat, from which on values on a grid count as discrete
_OFF_GRID = 0.02  # of a step: how far from its place a value may be (files round)
_PARTS = (1, 2, 3, 4, 5, 10)  # of the smallest gap that the step may be
_MOST_LEVELS = 100_000  # beyond which a column counts as continuous
_GAIN = 0.02  # nats a value that a curved map must be better than a straight one


class Column(ABC):
    """One column: table values to numbers and back. Among the numbers, what is missing is NaN."""

    @property
    def discrete(self) -> bool:
        """Whether its numbers are whole ones, a step of one apart."""
        return False

    @abstractmethod
    def encode(self, values: Values) -> Numbers:
        """Table values ``(N,)`` to numbers."""

    @abstractmethod
    def decode(self, numbers: Numbers) -> Values:
        """Numbers, as a model draws them, to table values."""

    def has(self, number: float, value: Any) -> bool:
        """Whether the column can have a value, which is ``number`` to a model."""
        return math.isfinite(number)

    @abstractmethod
    def log_slope(self, numbers: Numbers) -> Numbers:
        """Log of the slope of :meth:`encode` where it gives these numbers."""


@dataclass(frozen=True)
class Constant(Column):
    """A column of one value, which the model does not see; any other value has the chance of what was never seen."""

    value: Any
    count: int  # training rows

    def encode(self, values: Values) -> Numbers:
        missing = np.asarray(pd.isna(values), dtype=bool)
        other = np.full(len(values), np.nan)
        other[~missing] = [float(not self._is(value)) for value in values[~missing]]
        return other

    def _is(self, value: Any) -> bool:
        """Whether a value is the one; single precision rounds numbers that are not whole."""
        if value == self.value:
            return True
        if not isinstance(value, float) or not isinstance(self.value, float) or self.value.is_integer():
            return False
        with np.errstate(over="ignore"):
            return value == float(np.float32(self.value)) or float(np.float32(value)) == self.value

    def has(self, number: float, value: Any) -> bool:
        return number == 0.0

    def decode(self, numbers: Numbers) -> Values:
        return filled(len(numbers), self.value)

    def log_slope(self, numbers: Numbers) -> Numbers:
        return np.zeros_like(numbers)

    def log_prob(self, numbers: Numbers) -> Numbers:
        """Log probability in nats, NaN for what is missing."""
        seen = np.where(numbers > 0.0, _log_unseen(self.count), math.log1p(-math.exp(_log_unseen(self.count))))
        return np.where(np.isnan(numbers), np.nan, seen)


@dataclass(frozen=True)
class Categories(Column):
    """Names, as numbers by how frequent they are; one number more stands for names that were never seen."""

    names: tuple[Any, ...]
    count: int  # training rows

    @property
    def discrete(self) -> bool:
        return True

    def encode(self, values: Values) -> Numbers:
        places = {name: float(place) for place, name in enumerate(self.names)}
        missing = np.asarray(pd.isna(values), dtype=bool)
        numbers = np.full(len(values), np.nan)
        numbers[~missing] = [places.get(value, float(len(self.names))) for value in values[~missing]]
        return numbers

    def has(self, number: float, value: Any) -> bool:
        return number < len(self.names)

    def are_of_another_type(self, values: Values) -> bool:
        """Whether none of the values is known, nor of the type of any that is."""
        known = values[~np.asarray(pd.isna(values), dtype=bool)]
        types = {type(value) for value in known}
        return bool(types) and types.isdisjoint(map(type, self.names)) and set(known).isdisjoint(self.names)

    def decode(self, numbers: Numbers) -> Values:
        found = np.empty(len(numbers), dtype=object)
        known = ~np.isnan(numbers)
        places = np.clip(np.rint(numbers[known]), 0, len(self.names) - 1).astype(int)
        found[known] = np.array([*self.names, None], dtype=object)[places]
        return found

    def log_slope(self, numbers: Numbers) -> Numbers:
        """A name that was never seen has the chance of such names on top of that of the place beside the rarest."""
        return np.where(numbers > len(self.names) - 0.5, _log_unseen(self.count), 0.0)


@dataclass(frozen=True)
class Grid(Column):
    """Values on a grid, whole numbers for example; their numbers count the steps from the lowest."""

    spacing: float
    low: float
    levels: int
    whole: bool  # whether all values are integers
    known: tuple[float, ...] = ()  # the fitted values, where they are not whole: as a file rounds them

    @property
    def discrete(self) -> bool:
        return True

    def encode(self, values: Values) -> Numbers:
        with np.errstate(over="ignore"):
            return (values.astype(float) - self.low) / self.spacing

    def decode(self, numbers: Numbers) -> Values:
        return self.places(np.clip(np.rint(numbers), 0, self.levels - 1))

    def has(self, number: float, value: Any) -> bool:
        return -0.5 < number < self.levels - 0.5 and abs(number - round(number)) <= _OFF_GRID

    def places(self, numbers: Numbers) -> Values:
        """Table values of numbers, also beyond the grid that was fitted."""
        values = self.low + self.spacing * numbers
        if not self.whole:
            short = np.array([float(f"{value:.15g}") for value in values])
            return self._as_known(np.where(np.abs(short - values) <= 1e-3 * self.spacing, short, values))
        values = np.rint(values)
        return values if np.isnan(values).any() else values.astype(np.int64)

    def _as_known(self, values: Numbers) -> Numbers:
        """Values that are the fitted ones but for rounding, as those are; others as they are."""
        if not self.known:
            return values
        known = np.asarray(self.known)
        after = np.searchsorted(known, values).clip(1, len(known) - 1)
        near = np.where(np.abs(values - known[after - 1]) <= np.abs(values - known[after]), after - 1, after)
        return np.where(np.abs(values - known[near]) <= _OFF_GRID * self.spacing, known[near], values)

    def log_slope(self, numbers: Numbers) -> Numbers:
        return np.full_like(numbers, -math.log(self.spacing))


@dataclass(frozen=True)
class Continuous(Column):
    """A column of numbers, in units of its own: :math:`z = (x - m) / s`.

    Decoded draws stay within the range of the fitted values and as much again to either side.
    """

    middle: float
    scale: float
    low: float
    high: float

    def encode(self, values: Values) -> Numbers:
        with np.errstate(over="ignore"):
            return (values.astype(float) - self.middle) / self.scale

    def decode(self, numbers: Numbers) -> Values:
        span = self.high - self.low
        with np.errstate(over="ignore", invalid="ignore"):
            values = self.middle + self.scale * self._uncurved(numbers)
        return np.clip(values, self.low - span, self.high + span)

    def has(self, number: float, value: Any) -> bool:
        span = self.high - self.low
        return bool(self.low - span <= float(value) <= self.high + span)

    def log_slope(self, numbers: Numbers) -> Numbers:
        return np.full_like(numbers, -math.log(self.scale))

    def _uncurved(self, numbers: Numbers) -> Numbers:
        return numbers


@dataclass(frozen=True)
class Identity(Continuous):
    """A continuous column whose map is a straight line."""


@dataclass(frozen=True)
class Asinh(Continuous):
    """A continuous column with long tails: :math:`\\operatorname{asinh}((x - m) / s)`, for large values a logarithm."""

    def encode(self, values: Values) -> Numbers:
        return np.arcsinh(super().encode(values))

    def log_slope(self, numbers: Numbers) -> Numbers:
        return -math.log(self.scale) - (np.logaddexp(numbers, -numbers) - math.log(2.0))

    def _uncurved(self, numbers: Numbers) -> Numbers:
        return np.sinh(numbers)


@dataclass(frozen=True)
class Power(Continuous):
    """A skewed continuous column, by Yeo and Johnson's map of the values in units of their own.

    The exponent is from 0 to 2, where the map reaches every number.

    References:
        A new family of power transformations to improve normality or symmetry (Yeo and Johnson, 2000)
    """

    exponent: float

    def encode(self, values: Values) -> Numbers:
        with np.errstate(over="ignore"):
            return np.asarray(stats.yeojohnson(super().encode(values), self.exponent))

    def log_slope(self, numbers: Numbers) -> Numbers:
        inner = self._uncurved(numbers)
        return np.sign(inner) * (self.exponent - 1.0) * np.log1p(np.abs(inner)) - math.log(self.scale)

    def _uncurved(self, numbers: Numbers) -> Numbers:
        up = _unpower(np.maximum(numbers, 0.0), self.exponent)
        down = -_unpower(np.maximum(-numbers, 0.0), 2.0 - self.exponent)
        return np.where(np.isnan(numbers), np.nan, np.where(numbers >= 0.0, up, down))


def _unpower(numbers: Numbers, exponent: float) -> Numbers:
    """The inverse of :math:`((1 + x)^p - 1) / p` (of its limit, the logarithm, at zero), for numbers from zero up."""
    if exponent < 1e-9:
        return np.expm1(numbers)
    return np.expm1(np.log1p(exponent * numbers) / exponent)


def is_missing(value: Any) -> bool:
    """Whether one value is none: ``None``, NaN, ``pd.NA`` or ``pd.NaT``."""
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def filled(count: int, value: Any) -> Values:
    """So many times the same value, whatever it is."""
    if isinstance(value, float | int):
        return np.full(count, value)
    values = np.empty(count, dtype=object)
    values[:] = [value] * count
    return values


def _log_unseen(count: int) -> float:
    """Log of the chance that we give to what was not among so many rows."""
    return -math.log(count + 2.0)


# Which kind a column is ---------------------------------------------------------------------------------------------


def column_of(values: Values, categorical: bool) -> Column:
    """The kind of a column, by its training values.

    Arguments:
        values: ``(N,)``, with missing values.
        categorical: Whether they are names, even if they look like numbers.
    """
    known = values[~np.asarray(pd.isna(values), dtype=bool)]
    if len(pd.unique(known)) == 1:
        return Constant(known[0], len(known))
    if categorical:
        return Categories(tuple(pd.Series(known).value_counts(sort=True).index), len(known))
    known = known.astype(float)
    return grid_of(known) or smooth_of(known)


def grid_of(known: Numbers) -> Grid | None:
    """The grid that values lie on, if they repeat each other as those of a discrete column do."""
    levels = np.unique(known)
    if 1.0 - len(levels) / len(known) < _REPEATED or len(levels) < 2:
        return None
    gaps = np.diff(levels)
    whole = bool((levels == np.rint(levels)).all()) and levels[-1] - levels[0] < 2**53
    if whole:
        candidates = [float(np.gcd.reduce(gaps.astype(np.int64)))]
    else:
        smallest = float(gaps[gaps > 1e-7 * (levels[-1] - levels[0])].min())
        candidates = [smallest / part for part in _PARTS]
    for step in candidates:
        places = np.rint((levels - levels[0]) / step)
        if places[-1] >= _MOST_LEVELS:
            return None
        step = float((places * (levels - levels[0])).sum() / np.square(places).sum())  # by least squares
        if np.abs(levels - levels[0] - step * places).max() <= _OFF_GRID * step:
            return Grid(step, float(levels[0]), int(places[-1]) + 1, whole, () if whole else tuple(levels.tolist()))
    return None


def smooth_of(known: Numbers) -> Column:
    """The map after which the values are nearest to a normal distribution, by its likelihood."""
    span = (float(known.min()), float(known.max()))
    largest = float(np.abs(known).max())
    deviation = largest * float((known / largest).std())  # squares of very small numbers are zero
    straight = Identity(float(known.mean()), deviation or 1.0, *span)
    middle = float(np.median(known))
    low, high = np.quantile(known, [0.25, 0.75])
    scale = float(high - low) / 1.349
    if scale <= 0.0 or len(known) < 20:
        scale = straight.scale
    candidates: list[Column] = [Asinh(middle, scale, *span)]
    z = (known - middle) / scale
    if np.abs(z).max() < 1e6:
        exponent = float(np.clip(stats.yeojohnson_normmax(z), 0.0, 2.0))
        candidates.append(Power(middle, scale, *span, exponent))
    base = _normal_likelihood(straight, known)
    gains = [_normal_likelihood(candidate, known) - base for candidate in candidates]
    best = int(np.argmax(gains))
    return candidates[best] if gains[best] > _GAIN else straight


def _normal_likelihood(column: Column, known: Numbers) -> float:
    """Mean log likelihood of a normal distribution of the numbers, in nats a value and in units of the table."""
    numbers = column.encode(known)
    return float(-np.log(max(numbers.std(), 1e-300)) + column.log_slope(numbers).mean())
