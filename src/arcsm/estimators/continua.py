"""Columns of numbers on a continuum, and the maps that make them more nearly normal."""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import stats

from arcsm.estimators.column_types import GRID_TOLERANCE, SAME_NUMBER, Array, Column, Grid, Values, log_prob_of_unseen
from arcsm.stored_values import stored


@dataclass(frozen=True)
class Continuous(Column):
    """A continuous column with the linear map :math:`z = (x - m) / s`, and the base of nonlinear maps of :math:`z`.

    Decoded values extend beyond the range of the training values, ``low`` to ``high``, by at most its width, but not
    beyond hard ends, and as far as the grid does if they lie on one.
    """

    middle: float
    scale: float
    low: float
    high: float
    spikes: tuple[float, ...] = field(default=(), kw_only=True)  # values that repeat, in ascending order
    grid: Grid | None = field(default=None, kw_only=True)  # on which decoded values lie, if it is fine
    hard_ends: tuple[float, float] = field(default=(-math.inf, math.inf), kw_only=True)  # which no value lies beyond
    training_rows: int = field(default=0, kw_only=True)

    @property
    def example_numbers(self) -> Array:
        return self.encode(np.array([self.low, self.high]))

    @property
    def log_unseen(self) -> float:
        return 0.0 if self.ends is None else log_prob_of_unseen(self.training_rows)

    @cached_property
    def ends(self) -> tuple[float, float] | None:  # type: ignore[override]
        low, high = self.limits
        if self.grid is not None:
            half = 0.5 * self.grid.spacing
            low, high = low - half, high + half
        elif not any(map(math.isfinite, self.hard_ends)):
            return None
        else:
            tolerance = SAME_NUMBER * self.scale  # the ends themselves have a density
            low, high = low - tolerance, high + tolerance
        first, last = self.encode(np.array([low, high]))
        return float(first), float(last)

    @cached_property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest value that can be drawn."""
        span = self.high - self.low
        if self.grid is not None:
            below, above = (self.grid.spacing * steps for steps in self.grid.room)
            return self.low - below, self.high + above
        lowest, highest = self.hard_ends
        return max(self.low - span, lowest), min(self.high + span, highest)

    def with_room(self) -> "Continuous":
        lowest = self.low if self.low in self.spikes else 0.0 if self.low >= 0.0 else -math.inf
        highest = self.high if self.high in self.spikes else math.inf
        if self.grid is None:
            return replace(self, hard_ends=(lowest, highest))
        room = replace(self.grid, spikes=self.spikes).with_room().room
        return replace(self, grid=replace(self.grid, room=room))

    @property
    def spike_numbers(self) -> Array:
        return self.encode(np.array(self.spikes))

    def encode(self, values: Values) -> Array:
        with np.errstate(over="ignore"):
            return (values.astype(float) - self.middle) / self.scale

    def step_end(self, values: Values, upper: bool) -> Array:
        """Return the numbers of the ends of the steps that hold values, if there is a grid, else of the values."""
        if self.grid is None:
            return self.encode(values)
        steps = self.grid.encode(values)
        steps = np.floor(steps + GRID_TOLERANCE) + 0.5 if upper else np.ceil(steps - GRID_TOLERANCE) - 0.5
        return self.encode(self.grid.low + self.grid.spacing * steps)

    def decode(self, numbers: Array) -> Values:
        with np.errstate(over="ignore", invalid="ignore"):
            values = self.middle + self.scale * self._standardised(numbers)
        values = np.clip(values, *self.limits)
        if self.grid is not None:
            values = self.grid.decode(self.grid.encode(values))
        if not self.spikes:
            return values
        spike = self.spike_of(numbers)  # exactly, although encoding and decoding rounds
        return np.where(spike > 0, np.array(self.spikes)[spike - 1], values)

    def log_slope(self, numbers: Array) -> Array:
        return self._of_density(numbers, np.full_like(numbers, -math.log(self.scale)))

    def _of_density(self, numbers: Array, log_slope: Array) -> Array:
        """Return log slopes where values have a density; spikes have a probability, whatever the unit."""
        return np.where(self.spike_of(numbers) > 0, 0.0, log_slope)

    def allows(self, number: float, value: Any) -> bool:
        low, high = self.limits
        return bool(low <= float(value) <= high)

    def _standardised(self, numbers: Array) -> Array:
        """Invert the nonlinear part of the map."""
        return numbers


@stored
@dataclass(frozen=True)
class Identity(Continuous):
    """A continuous column with a linear map."""


@stored
@dataclass(frozen=True)
class Asinh(Continuous):
    """A continuous column with heavy tails: :math:`\\operatorname{asinh}((x - m) / s)`."""

    @property
    def exponent_of_map(self) -> float:
        return math.nan

    def encode(self, values: Values) -> Array:
        return np.arcsinh(super().encode(values))

    def log_slope(self, numbers: Array) -> Array:
        size = np.abs(numbers)
        log_cosh = size + np.log1p(np.exp(-2.0 * size)) - math.log(2.0)
        return self._of_density(numbers, -math.log(self.scale) - log_cosh)

    def _standardised(self, numbers: Array) -> Array:
        return np.sinh(numbers)


@stored
@dataclass(frozen=True)
class Power(Continuous):
    """A skewed continuous column: the Yeo-Johnson transform, whose range is the real line for exponents from 0 to 2.

    References:
        A new family of power transformations to improve normality or symmetry (Yeo and Johnson, 2000)
    """

    exponent: float

    @property
    def exponent_of_map(self) -> float:
        return self.exponent

    def encode(self, values: Values) -> Array:
        with np.errstate(over="ignore"):
            return np.asarray(stats.yeojohnson(super().encode(values), self.exponent))

    def log_slope(self, numbers: Array) -> Array:
        z = self._standardised(numbers)
        log_slope = np.sign(z) * (self.exponent - 1.0) * np.log1p(np.abs(z)) - math.log(self.scale)
        return self._of_density(numbers, log_slope)

    def _standardised(self, numbers: Array) -> Array:
        up = _inverse_power(np.maximum(numbers, 0.0), self.exponent)
        down = -_inverse_power(np.maximum(-numbers, 0.0), 2.0 - self.exponent)
        return np.where(np.isnan(numbers), np.nan, np.where(numbers >= 0.0, up, down))


def _inverse_power(numbers: Array, exponent: float) -> Array:
    """Invert :math:`((1 + x)^p - 1) / p`, or its limit :math:`\\log(1 + x)` at :math:`p = 0`, for :math:`x \\ge 0`."""
    if exponent < 1e-9:
        return np.expm1(numbers)
    return np.expm1(np.log1p(exponent * numbers) / exponent)
