"""Columns of a table as a density model wants them: numbers without steps, with one scale and no long tails.

Every column gets one of four kinds when a table is fitted, and each is a map that is known in both directions, so that
densities are those of the table's own values: the log slope of the map belongs to them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[Any]
Numbers = NDArray[np.float64]

_REPEATED = 0.05  # share of the values that others repeat, from which on a grid of values counts as discrete
_DECIMALS = 6  # places to which a step is looked for
_LARGEST_GRID = 100_000  # levels beyond which a column counts as continuous
_GAIN = 0.02  # nats a value that a curved map must be better than a straight one


class Column(ABC):
    """One column: table values to numbers and back; missing values are NaN among the numbers.

    Attributes:
        step: Distance of neighbouring numbers of a discrete column, 0 for a continuous one.
    """

    step: float

    @abstractmethod
    def encode(self, values: Values) -> Numbers:
        """Table values ``(N,)`` to numbers."""

    @abstractmethod
    def decode(self, numbers: Numbers) -> Values:
        """Numbers, as a model draws them, to table values."""

    def log_slope(self, numbers: Numbers) -> Numbers:
        """Log of the slope of :meth:`encode` where it gives these numbers; 0 where they are the values themselves."""
        return np.zeros_like(numbers)


@dataclass(frozen=True)
class Constant(Column):
    """A column of one value, which the model does not see; any other value has the chance of what was never seen."""

    step: ClassVar[float] = 0.0  # type: ignore[misc]
    value: Any
    count: int  # training rows

    def encode(self, values: Values) -> Numbers:
        missing = pd.isna(values)
        other = np.array([value != self.value for value in values], dtype=float)
        return np.where(missing, np.nan, other)

    def decode(self, numbers: Numbers) -> Values:
        return np.full(len(numbers), self.value)

    def log_prob(self, numbers: Numbers) -> Numbers:
        """Log probability in nats, 0 for what is missing."""
        unseen = 1.0 / (self.count + 2.0)
        found = np.where(numbers > 0.0, math.log(unseen), math.log1p(-unseen))
        return np.where(np.isnan(numbers), 0.0, found)


@dataclass(frozen=True)
class Categories(Column):
    """Names, as numbers by how frequent they are; one number more stands for names that were never seen."""

    names: tuple[Any, ...]
    step: float = 1.0

    def encode(self, values: Values) -> Numbers:
        places = {name: float(place) for place, name in enumerate(self.names)}
        return np.array(
            [np.nan if missing else places.get(value, float(len(self.names)))
             for value, missing in zip(values, pd.isna(values), strict=True)], dtype=float,
        )  # fmt: skip

    def decode(self, numbers: Numbers) -> Values:
        places = np.clip(np.rint(numbers), 0, len(self.names) - 1).astype(int)
        found = np.empty(len(places), dtype=object)
        found[:] = [self.names[place] for place in places]
        return found


@dataclass(frozen=True)
class Grid(Column):
    """Numbers on a grid, integers for example."""

    step: float
    origin: float
    low: float
    high: float
    integer: bool

    def encode(self, values: Values) -> Numbers:
        return values.astype(float)

    def decode(self, numbers: Numbers) -> Values:
        nearest = self.origin + self.step * np.rint((numbers - self.origin) / self.step)
        nearest = np.clip(nearest, self.low, self.high)
        return nearest.astype(np.int64) if self.integer else np.round(nearest, _DECIMALS + 2)


@dataclass(frozen=True)
class Straight(Column):
    """A continuous column whose numbers are its values."""

    step: ClassVar[float] = 0.0  # type: ignore[misc]

    def encode(self, values: Values) -> Numbers:
        return values.astype(float)

    def decode(self, numbers: Numbers) -> Values:
        return numbers


@dataclass(frozen=True)
class Asinh(Column):
    """A continuous column with long tails: :math:`\\operatorname{asinh}((x - m) / s)`, for large values a logarithm."""

    step: ClassVar[float] = 0.0  # type: ignore[misc]
    middle: float
    scale: float

    def encode(self, values: Values) -> Numbers:
        return np.arcsinh((values.astype(float) - self.middle) / self.scale)

    def decode(self, numbers: Numbers) -> Values:
        return self.middle + self.scale * np.sinh(np.clip(numbers, -300.0, 300.0))

    def log_slope(self, numbers: Numbers) -> Numbers:
        return -np.log(self.scale) - _log_cosh(numbers)


@dataclass(frozen=True)
class Power(Column):
    """A skewed continuous column, by Yeo and Johnson's map of the values in units of their own.

    References:
        A new family of power transformations to improve normality or symmetry (Yeo and Johnson, 2000)
    """

    step: ClassVar[float] = 0.0  # type: ignore[misc]
    exponent: float
    middle: float
    scale: float

    def encode(self, values: Values) -> Numbers:
        return np.asarray(stats.yeojohnson((values.astype(float) - self.middle) / self.scale, self.exponent))

    def decode(self, numbers: Numbers) -> Values:
        power, inner = self.exponent, np.empty_like(numbers)
        up = numbers >= 0.0
        with np.errstate(invalid="ignore", over="ignore"):
            inner[up] = np.expm1(numbers[up]) if power == 0.0 else _power(power * numbers[up] + 1.0, 1.0 / power) - 1.0
            other = 2.0 - power
            inner[~up] = 1.0 - (
                np.exp(-numbers[~up]) if other == 0.0 else _power(1.0 - other * numbers[~up], 1.0 / other)
            )
        return self.middle + self.scale * inner

    def log_slope(self, numbers: Numbers) -> Numbers:
        inner = (self.decode(numbers) - self.middle) / self.scale
        return np.sign(inner) * (self.exponent - 1.0) * np.log1p(np.abs(inner)) - math.log(self.scale)


def _power(base: Numbers, exponent: float) -> Numbers:
    """A power of a base that a draw may have pushed beyond the end of the map's range: the end then."""
    return np.maximum(base, 1e-12) ** exponent


def _log_cosh(x: Numbers) -> Numbers:
    return np.logaddexp(x, -x) - math.log(2.0)


# Which kind a column is ---------------------------------------------------------------------------------------------


def column_of(values: Values, categorical: bool) -> Column:
    """The kind of a column, by its training values.

    Arguments:
        values: ``(N,)``, with missing values.
        categorical: Whether they are names, even if they look like numbers.
    """
    known = values[~pd.isna(values)]
    if len(pd.unique(known)) == 1:
        return Constant(known[0], len(known))
    if categorical:
        return Categories(tuple(pd.Series(known).value_counts(sort=True).index))
    known = known.astype(float)
    return grid_of(known) or smooth_of(known)


def grid_of(known: Numbers) -> Grid | None:
    """The grid that values lie on, if they repeat each other as those of a discrete column do."""
    levels = np.unique(known)
    if 1.0 - len(levels) / len(known) < _REPEATED or len(levels) < 2:
        return None
    integer = bool((levels == np.rint(levels)).all())
    gaps = np.diff(levels)
    step = float(np.gcd.reduce(np.rint(gaps).astype(np.int64))) if integer and gaps.max() < 2**53 else float(gaps.min())
    places = (levels - levels[0]) / step
    on_grid = bool((np.abs(places - np.rint(places)) < 10.0**-_DECIMALS * np.maximum(1.0, places)).all())
    if not on_grid or places[-1] > _LARGEST_GRID:
        return None
    return Grid(step, float(levels[0]), float(levels[0]), float(levels[-1]), integer)


def smooth_of(known: Numbers) -> Column:
    """The map after which the values are nearest to a normal distribution, by its likelihood."""
    middle = float(np.median(known))
    low, high = np.quantile(known, [0.25, 0.75])
    scale = float(high - low) / 1.349
    if scale <= 0.0 or len(known) < 20:
        scale = float(known.std()) or 1.0
    straight = Straight()
    candidates: list[Column] = [Asinh(middle, scale)]
    z = (known - middle) / scale
    if np.abs(z).max() < 1e6:
        exponent = float(np.clip(stats.yeojohnson_normmax(z), -2.0, 4.0))
        candidates.append(Power(exponent, middle, scale))
    base = _normal_likelihood(straight, known)
    gains = [_normal_likelihood(candidate, known) - base for candidate in candidates]
    best = int(np.argmax(gains))
    return candidates[best] if gains[best] > _GAIN else straight


def _normal_likelihood(column: Column, known: Numbers) -> float:
    """Mean log likelihood of a normal distribution of the numbers, in nats a value and in units of the table."""
    numbers = column.encode(known)
    return float(-np.log(max(numbers.std(), 1e-300)) + column.log_slope(numbers).mean())


# Tables -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Columns:
    """All columns of a table.

    Attributes:
        kinds: One for each column.
        dtypes: Of the columns of a frame; ``None`` for an array.
        names: Of the columns of a frame; ``None`` for an array.
    """

    kinds: tuple[Column, ...]
    dtypes: tuple[Any, ...] | None = None
    names: tuple[Any, ...] | None = None

    @classmethod
    def of(cls, table: pd.DataFrame | NDArray[np.float64]) -> Columns:
        """The columns of training rows."""
        if isinstance(table, pd.DataFrame):
            kinds = [column_of(table.iloc[:, d].to_numpy(), is_categorical(table.dtypes.iloc[d]))
                     for d in range(table.shape[1])]  # fmt: skip
            return cls(tuple(kinds), tuple(table.dtypes), tuple(table.columns))
        return cls(tuple(column_of(table[:, d], categorical=False) for d in range(table.shape[1])))

    @property
    def modelled(self) -> list[int]:
        """Numbers of the columns that a model sees."""
        return [d for d, kind in enumerate(self.kinds) if not isinstance(kind, Constant)]

    @property
    def steps(self) -> list[float]:
        """Of the modelled columns."""
        return [self.kinds[d].step for d in self.modelled]

    def encode(self, table: pd.DataFrame | NDArray[np.float64]) -> Numbers:
        """Rows of the table as numbers, ``(N, D)``, constant columns included."""
        own: list[Values] = [
            table.iloc[:, d].to_numpy() if isinstance(table, pd.DataFrame) else table[:, d]
            for d in range(len(self.kinds))
        ]
        return np.stack([kind.encode(values) for kind, values in zip(self.kinds, own, strict=True)], 1)

    def decode(self, numbers: Numbers) -> pd.DataFrame | NDArray[np.float64]:
        """Numbers of the modelled columns ``(N, M)`` as rows of a table like the one that was fitted."""
        own: list[Values] = []
        place = {d: m for m, d in enumerate(self.modelled)}
        for d, kind in enumerate(self.kinds):
            own.append(kind.decode(numbers[:, place[d]] if d in place else np.zeros(len(numbers))))
        if self.names is None or self.dtypes is None:
            return np.stack([values.astype(float) for values in own], 1)
        series = {
            d: pd.Series(values).astype(dtype) for d, (values, dtype) in enumerate(zip(own, self.dtypes, strict=True))
        }
        frame = pd.DataFrame(series)
        frame.columns = pd.Index(self.names)
        return frame

    def log_slopes(self, numbers: Numbers) -> Numbers:
        """Log slopes of the modelled columns, ``(N, M)``; 0 where a value is missing."""
        chosen = [self.kinds[d].log_slope(numbers[:, m]) for m, d in enumerate(self.modelled)]
        return np.nan_to_num(np.stack(chosen, 1), nan=0.0) if chosen else np.zeros((len(numbers), 0))


def is_categorical(dtype: Any) -> bool:
    """Whether a column of a frame holds names and not numbers."""
    return not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype)


def describe(kinds: Sequence[Column]) -> str:
    """How many columns are of which kind, for people."""
    names = [type(kind).__name__.lower() for kind in kinds]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
