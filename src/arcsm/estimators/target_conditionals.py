"""The conditional of one target of a regression given the known values of rows, in units of the table.

Rows are encoded: ``x`` has shape ``(N, M)``, and NaN where a value is unknown, the target included. Arguments and
results have shape ``(N, Q)``: ``Q`` of them for each row.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from arcsm.estimators.column_conditionals import ColumnConditionals
from arcsm.estimators.column_types import Array, Column, Constant, Grid
from arcsm.estimators.table_model import TableModel

_CONDITIONALS_AT_A_TIME = 20_000
_NODES = 64  # of the quadrature of moments
_CANDIDATES = 48  # of a mode
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

    @abstractmethod
    def moments(self, x: Tensor) -> tuple[Array, Array]:
        """Return means and standard deviations, ``(N,)``."""

    @abstractmethod
    def mode(self, x: Tensor) -> Array:
        """Return the most likely values, ``(N,)``."""


@dataclass(frozen=True)
class LevelTarget(TargetConditionals):
    """A target with a probability for each of few values.

    Attributes:
        model: The model of the table; ``None`` if all of its columns are constant.
        kind: The type of the target.
        column: Its place among the columns of the model; ``None`` if it is constant.
    """

    model: TableModel | None
    kind: Column
    column: int | None

    @property
    def values(self) -> Array:
        """The values in ascending order, ``(K,)``."""
        return np.array(self.kind.few if isinstance(self.kind, Grid) else [self.kind.value], dtype=float)  # type: ignore[attr-defined]

    def encode(self, y: Array) -> Array:
        return self.kind.encode(y)

    def probabilities(self, x: Tensor) -> Array:
        """Return the probability of each value, ``(N, K)``."""
        if self.column is None:
            return np.ones((len(x), 1))
        return level_probabilities(self.model, x, self.column, self.kind.level_numbers)

    def log_density(self, x: Tensor, y: Array) -> Array:
        numbers = self.encode(y.ravel())
        if isinstance(self.kind, Constant):
            return self.kind.log_prob(numbers).reshape(y.shape)
        assert self.model is not None
        assert self.column is not None
        columns, known = self.model.columns, torch.from_numpy(numbers)
        level = columns.level(self.column, known).view(y.shape)
        of_level = torch.from_numpy(self.probabilities(x)).log().gather(1, level.nan_to_num(nan=0.0).long())
        shares = columns.log_share(self.column, known).view(y.shape)
        slopes = self.kind.log_slope(numbers).reshape(y.shape)
        found = (torch.where(level.isnan(), 0.0, of_level) + shares).numpy() + slopes
        return np.where(np.isnan(y), np.nan, found)

    def cdf(self, x: Tensor, y: Array) -> Array:
        step = self.kind.spacing if isinstance(self.kind, Grid) else 0.0
        count = np.searchsorted(self.values, y + _ROUNDING * step, side="right")
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


@torch.no_grad()
def level_probabilities(model: TableModel | None, x: Tensor, m: int, numbers: Array) -> Array:
    """Return the probability of each of the ``numbers (K,)`` of column ``m`` of the model, ``(N, K)``, with sum 1."""
    assert model is not None
    known = torch.from_numpy(numbers)
    levels, shares = model.columns.level(m, known), model.columns.log_share(m, known)
    found = []
    for rows in x.split(max(1, _CONDITIONALS_AT_A_TIME // len(known))):
        conditionals = model.conditionals_given(rows, m, repeats=len(known))
        terms = conditionals.values.log_prob(levels.to(model.model.shift).repeat(len(rows)))
        found.append((terms.view(len(rows), -1).cpu().double() + shares).softmax(-1))
    return torch.cat(found).numpy() if found else np.empty((0, len(known)))


@dataclass(frozen=True)
class NumberTarget(TargetConditionals):
    """A target whose values are numbers: a continuum or a grid, perhaps with spikes.

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

    @torch.no_grad()
    def _apply(self, x: Tensor, arguments: Array, function: Callable[[ColumnConditionals, Tensor], Tensor]) -> Array:
        """Apply a function of conditionals and arguments, both flat, to arguments ``(N, Q)``; NaN stays NaN."""
        found = np.empty(arguments.shape)
        size = max(1, _CONDITIONALS_AT_A_TIME // max(1, arguments.shape[1]))
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            given = torch.from_numpy(arguments[rows]).to(self.model.model.shift).flatten()
            conditionals = self.model.conditionals_given(x[rows], self.column, repeats=arguments.shape[1])
            found[rows] = function(conditionals, given).cpu().double().view(-1, arguments.shape[1]).numpy()
        return np.where(np.isnan(arguments), np.nan, found)

    def log_density(self, x: Tensor, y: Array) -> Array:
        numbers = self.encode(y.ravel())
        slopes = self.kind.log_slope(numbers)
        numbers = np.rint(numbers) if self.kind.discrete else numbers
        columns, width = self.model.columns, self.model.columns.widths[self.column]

        def log_density(conditionals: ColumnConditionals, numbers: Tensor) -> Tensor:
            known = numbers.nan_to_num(nan=0.0)
            found = conditionals.log_mean_density(known, width)
            if not len(conditionals.spikes):
                return found
            spike = columns.spike(self.column, known).long()
            of_spike = conditionals.masses.gather(1, spike[:, None])[:, 0].log()
            of_spike = torch.logaddexp(of_spike, found) if width else of_spike
            return torch.where(spike > 0, of_spike, found)

        return self._apply(x, numbers.reshape(y.shape), log_density) + slopes.reshape(y.shape)

    def cdf(self, x: Tensor, y: Array) -> Array:
        numbers = self.kind.encode(y.ravel())
        if self.kind.discrete:
            numbers = np.floor(numbers + _ROUNDING) + 0.5
        numbers = self._clip(numbers).reshape(y.shape)
        return self._apply(x, numbers, lambda conditionals, n: conditionals.cdf(n.nan_to_num(nan=0.0)))

    def quantile(self, x: Tensor, u: Array) -> Array:
        return self._decode(self._apply(x, u, lambda conditionals, u: conditionals.icdf(u)))

    def _decode(self, numbers: Array) -> Array:
        return np.asarray(self.kind.decode(numbers.ravel()), dtype=float).reshape(numbers.shape)

    def moments(self, x: Tensor) -> tuple[Array, Array]:
        u, weights = quadrature_rule(_NODES)
        p, spikes = self._masses(x)
        y = self._quantiles_of_others(x, u)
        mean = p[:, 0] * (y @ weights) + p[:, 1:] @ spikes
        squares = p[:, 0] * ((y - mean[:, None]) ** 2 @ weights) + (p[:, 1:] * (spikes - mean[:, None]) ** 2).sum(1)
        return mean, np.sqrt(squares)

    def _masses(self, x: Tensor) -> tuple[Array, Array]:
        """Return the probabilities of other numbers and of each spike, ``(N, 1 + K)``, and the spikes ``(K,)``."""
        chunks = x.split(_CONDITIONALS_AT_A_TIME)
        masses = [self.model.conditionals_given(rows, self.column).masses.cpu().double() for rows in chunks]
        return torch.cat(masses).numpy(), self._decode(self.kind.spike_numbers)

    def _quantiles_of_others(self, x: Tensor, u: Array) -> Array:
        """Return quantiles ``u (Q,)`` of numbers that are no spikes, ``(N, Q)``."""
        numbers = self._apply(
            x, np.broadcast_to(u, (len(x), len(u))).copy(),
            lambda conditionals, u: conditionals.values.icdf(u) * conditionals.scale + conditionals.shift,
        )  # fmt: skip
        return self._decode(numbers)

    def mode(self, x: Tensor) -> Array:
        """Return the values with the highest density, ``(N,)``.

        A spike has the density of its probability, spread over the noise of the density or over a step.
        """
        y = self._quantiles_of_others(x, (np.arange(_CANDIDATES) + 0.5) / _CANDIDATES)
        rows = np.arange(len(y))
        for _ in range(_REFINEMENTS):
            best = self._log_density_of_others(x, y).argmax(1)
            low, high = y[rows, (best - 1).clip(0)], y[rows, (best + 1).clip(max=y.shape[1] - 1)]
            y = low[:, None] + (high - low)[:, None] * np.linspace(0.0, 1.0, 9)
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
        return self._apply(x, numbers.reshape(y.shape), lambda conditionals, n: conditionals.log_prob(n)) + slopes


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
    if model is None or column is None or len(kind.level_numbers):
        return LevelTarget(model, kind, column)
    return NumberTarget(model, kind, column)
