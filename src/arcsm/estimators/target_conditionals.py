"""The conditional of one target of a regression given the known values of rows, in units of the table.

Rows are encoded: ``x`` has shape ``(N, M)``, and NaN where a value is unknown, the target included. Arguments and
results have shape ``(N, Q)``: ``Q`` of them for each row.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from arcsm.estimators.column_conditionals import ColumnConditionals
from arcsm.estimators.column_types import Array, Column, Constant, Grid
from arcsm.estimators.continua import Continuous
from arcsm.estimators.table_model import CONDITIONALS_AT_A_TIME, ConditionalFunction, TableModel

_NODES = 64  # of the quadrature of moments
_CANDIDATES = 48  # of a mode
_REFINED = 9  # candidates between the neighbours of the best one
_REFINEMENTS = 3  # of a mode, each between the neighbours of the best candidate
_ROUNDING = 1e-6  # of a step between the values of a discrete target


class TargetConditionals(ABC):
    """The conditionals of one target."""

    column: int | None  # among the columns of the model

    @abstractmethod
    def encode(self, y: Array) -> Array:
        """Return the numbers of values of the target."""

    @abstractmethod
    def log_density(self, x: Tensor, y: Array) -> Array:
        """Return log densities in nats.

        A discrete target has its probability divided by the step between values, as a histogram has. In a continuum, a
        value with a probability of its own has the log of that probability.
        """

    @abstractmethod
    def cdf(self, x: Tensor, y: Array) -> Array:
        """Return the probability of at most ``y``."""

    @abstractmethod
    def quantile(self, x: Tensor, u: Array) -> Array:
        """Return the quantiles ``u``, inside (0, 1)."""

    def draw(self, x: Tensor, u: Array) -> Array:
        """Return draws from uniform numbers ``u`` inside (0, 1)."""
        return self.quantile(x, u)

    @abstractmethod
    def moments(self, x: Tensor) -> tuple[Array, Array]:
        """Return means and standard deviations, ``(N,)``."""

    @abstractmethod
    def mode(self, x: Tensor) -> Array:
        """Return the most likely values, ``(N,)``."""


@dataclass(frozen=True)
class ConstantTarget(TargetConditionals):
    """A target that had one value when fitted."""

    kind: Constant
    column = None

    def encode(self, y: Array) -> Array:
        return self.kind.encode(y)

    def log_density(self, x: Tensor, y: Array) -> Array:
        return self.kind.log_prob(self.encode(y.ravel())).reshape(y.shape)

    def cdf(self, x: Tensor, y: Array) -> Array:
        return np.where(np.isnan(y), np.nan, y >= self.kind.value)

    def quantile(self, x: Tensor, u: Array) -> Array:
        return np.where(np.isnan(u), np.nan, float(self.kind.value))

    def moments(self, x: Tensor) -> tuple[Array, Array]:
        return self.mode(x), np.zeros(len(x))

    def mode(self, x: Tensor) -> Array:
        return np.full(len(x), float(self.kind.value))


@dataclass(frozen=True)
class ModelledTarget(TargetConditionals):
    """A target that varies.

    Attributes:
        model: The model of the table.
        kind: The type of the target.
        column: Its place among the columns of the model.
    """

    model: TableModel
    kind: Column
    column: int

    def encode(self, y: Array) -> Array:
        return self._clip(self.kind.encode(y))

    def _clip(self, numbers: Array) -> Array:
        row = torch.full((numbers.size, self.model.columns.columns), torch.nan, dtype=torch.float64)
        row[:, self.column] = torch.from_numpy(numbers.ravel())
        return self.model.clip(row)[:, self.column].numpy().reshape(numbers.shape)

    def log_density(self, x: Tensor, y: Array) -> Array:
        numbers = self.encode(y.ravel())
        slopes = self.kind.log_slope(numbers)
        found = self._evaluate(x, self.kind.rounded(numbers).reshape(y.shape), ColumnConditionals.log_prob)
        return found + slopes.reshape(y.shape)

    def _evaluate(self, x: Tensor, arguments: Array, function: ConditionalFunction) -> Array:
        """Return a function of the conditional of each row and its arguments, ``(N, Q)``."""
        return self.model.evaluate_given(x, self.column, torch.from_numpy(arguments), function).numpy()


@dataclass(frozen=True)
class LevelTarget(ModelledTarget):
    """A target with a probability for each of few values."""

    @property
    def values(self) -> Array:
        """The values in ascending order, ``(K,)``."""
        assert isinstance(self.kind, Grid)
        return np.array(self.kind.few, dtype=float)

    def probabilities(self, x: Tensor) -> Array:
        """Return the probability of each value, ``(N, K)``."""
        numbers = torch.from_numpy(self.kind.level_numbers)
        return self.model.level_probabilities(x, self.column, numbers).numpy()

    def cdf(self, x: Tensor, y: Array) -> Array:
        assert isinstance(self.kind, Grid)
        count = np.searchsorted(self.values, y + _ROUNDING * self.kind.spacing, side="right")
        return np.take_along_axis(np.pad(self._cumulative(x), ((0, 0), (1, 0))), count, 1)

    def quantile(self, x: Tensor, u: Array) -> Array:
        place = (self._cumulative(x)[:, None] < u[..., None]).sum(-1)
        return np.where(np.isnan(u), np.nan, self.values[place.clip(max=len(self.values) - 1)])

    def _cumulative(self, x: Tensor) -> Array:
        return self.probabilities(x).cumsum(1).clip(max=1.0)

    def moments(self, x: Tensor) -> tuple[Array, Array]:
        p = self.probabilities(x)
        mean = p @ self.values
        return mean, np.sqrt((p * (self.values - mean[:, None]) ** 2).sum(1))

    def mode(self, x: Tensor) -> Array:
        return self.values[self.probabilities(x).argmax(1)]


@dataclass(frozen=True)
class NumberTarget(ModelledTarget):
    """A target whose values are numbers: a continuum or a grid, perhaps with spikes."""

    def cdf(self, x: Tensor, y: Array) -> Array:
        if isinstance(self.kind, Continuous):
            numbers = self.kind.step_end(y.ravel(), upper=True)
        else:
            numbers = np.floor(self.kind.encode(y.ravel()) + _ROUNDING)
        return self._evaluate(x, self._clip(numbers).reshape(y.shape), ColumnConditionals.cdf)

    def quantile(self, x: Tensor, u: Array) -> Array:
        return self._decode(self._evaluate(x, u, ColumnConditionals.icdf))

    def draw(self, x: Tensor, u: Array) -> Array:
        return self._decode(self._evaluate(x, u, ColumnConditionals.draws))

    def _decode(self, numbers: Array) -> Array:
        return np.asarray(self.kind.decode(numbers.ravel()), dtype=float).reshape(numbers.shape)

    def moments(self, x: Tensor) -> tuple[Array, Array]:
        u, weights = quadrature_rule(_NODES)
        p, spikes = self._masses(x)
        y = self._draws_of_others(x, u)
        mean = p[:, 0] * (y @ weights) + p[:, 1:] @ spikes
        squares = p[:, 0] * ((y - mean[:, None]) ** 2 @ weights) + (p[:, 1:] * (spikes - mean[:, None]) ** 2).sum(1)
        return mean, np.sqrt(squares)

    def _masses(self, x: Tensor) -> tuple[Array, Array]:
        """Return the probabilities of other numbers and of each spike, ``(N, 1 + K)``, and the spikes ``(K,)``."""
        chunks = x.split(CONDITIONALS_AT_A_TIME)
        masses = [self.model.conditionals_given(rows, self.column).masses.cpu().double() for rows in chunks]
        return torch.cat(masses).numpy(), self._decode(self.kind.spike_numbers)

    def _draws_of_others(self, x: Tensor, u: Array) -> Array:
        """Return draws of values that are no spikes, from uniform numbers ``u (Q,)``, ``(N, Q)``."""
        u_of_rows = np.broadcast_to(u, (len(x), len(u))).copy()
        return self._decode(self._evaluate(x, u_of_rows, ColumnConditionals.draws_of_others))

    def mode(self, x: Tensor) -> Array:
        """Return the values with the highest density, ``(N,)``.

        A spike has the density of its probability, spread over the noise of the density or over a step.
        """
        count = _CANDIDATES // 2 if self.kind.discrete else _CANDIDATES
        y = np.sort(self._draws_of_others(x, (np.arange(count) + 0.5) / count), 1)
        rows = np.arange(len(y))
        for _ in range(_REFINEMENTS):
            best = self._log_density_of_others(x, y).argmax(1)
            low, high = y[rows, (best - 1).clip(0)], y[rows, (best + 1).clip(max=y.shape[1] - 1)]
            y = low[:, None] + (high - low)[:, None] * np.linspace(0.0, 1.0, _REFINED)
            if isinstance(self.kind, Grid) and bool((high - low <= (_REFINED - 1) * self.kind.spacing).all()):
                break  # all values between are candidates
        found = self._log_density_of_others(x, y)
        best = found.argmax(1)
        modes = self._decode(self.encode(y[rows, best]))
        p, spikes = self._masses(x)
        if not len(spikes):
            return modes
        spread = np.log(p[:, 1:]) + self._log_slope(self.kind.spike_numbers) - math.log(self._spread)
        return np.where(spread.max(1) > found[rows, best], spikes[spread.argmax(1)], modes)

    @property
    def _spread(self) -> float:
        """The width over which the probability of a spike is spread to compare it with densities, in numbers."""
        noise = math.sqrt(2.0 * math.pi) * self.model.model.path(self.model.level)[-1]
        return self.model.columns.widths[self.column] or float(noise * self.model.model.scale[self.column])

    def _log_slope(self, numbers: Array) -> Array:
        return self.kind.log_slope(np.nextafter(numbers, np.inf))  # beside a spike, where the slope is not 0

    def _log_density_of_others(self, x: Tensor, y: Array) -> Array:
        """Return log densities as if values were no spikes, ``(N, Q)``."""
        numbers = self.encode(y.ravel())
        slopes = self._log_slope(numbers).reshape(y.shape)
        return self._evaluate(x, numbers.reshape(y.shape), ColumnConditionals.log_density_of_others) + slopes


def quadrature_rule(count: int) -> tuple[Array, Array]:
    """Return nodes ``u`` in (0, 1) and weights of a rule for the mean of a function of a uniform number.

    The nodes cluster at both ends, where quantiles change fast: the midpoint rule after the substitution
    :math:`u = v - \\sin(2 \\pi v) / (2 \\pi)`.

    References:
        A new variable transformation for numerical integration (Sidi, 1993)
    """
    angles = 2.0 * np.pi * (np.arange(count) + 0.5) / count
    return (angles - np.sin(angles)) / (2.0 * np.pi), (1.0 - np.cos(angles)) / count


def target_conditionals(model: TableModel | None, kind: Column, column: int | None) -> TargetConditionals:
    """Return the conditionals of a numeric target of a type at its place among the columns of the model."""
    if model is None or column is None:
        assert isinstance(kind, Constant)
        return ConstantTarget(kind)
    return (LevelTarget if len(kind.level_numbers) else NumberTarget)(model, kind, column)
