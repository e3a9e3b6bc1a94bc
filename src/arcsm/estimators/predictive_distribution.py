"""The distribution of targets given the features of each row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from arcsm._runtime.sizes import check_size
from arcsm.estimators.column_types import Array
from arcsm.estimators.table_model import CONDITIONALS_AT_A_TIME
from arcsm.estimators.target_conditionals import TargetConditionals


class PredictiveDistribution:
    """The distribution of one target, or of several, given the features of ``N`` rows, in units of the targets.

    Results have shape ``(N,)``, or ``(N, T)`` if :class:`ScoreRegressor` was fitted to targets ``(N, T)``. Arguments
    broadcast with this shape: a number, one for each row, or a grid ``(Q, 1)`` for a result ``(Q, N)``. With several
    targets, :meth:`pdf`, :meth:`log_pdf` and :meth:`sample` are joint, and the other methods concern each target given
    the features alone. A missing value of an argument gives NaN.

    The density of a discrete target is its probability divided by the step between its values. Where a value such as 0
    has a probability of its own in a continuum, the density is that probability.

    Example:
        >>> from arcsm.estimators import ScoreRegressor
        >>> x = np.linspace(-1.0, 1.0, 200)[:, None]
        >>> y = x[:, 0] + np.random.default_rng(0).normal(size=200)
        >>> regressor = ScoreRegressor(max_steps=20, n_estimators=1, random_state=0).fit(x, y)
        >>> predicted = regressor.predict_distribution(x[:5])
        >>> low, high = predicted.interval(0.9)
        >>> low.shape, bool((predicted.cdf(low) < 0.06).all()), predicted.pdf(np.zeros((7, 1))).shape
        ((5,), True, (7, 5))
    """

    def __init__(
        self,
        targets: Sequence[TargetConditionals],
        orders: Sequence[Sequence[int]],
        x: Tensor,
        single: bool,
        random_state: Any,
    ) -> None:
        """Store the targets, their orders, encoded rows ``(N, M)``, and whether the targets are a vector ``(N,)``."""
        self._targets = list(targets)
        self._orders = list(orders)
        self._x = x
        self._single = single
        self._random_state = random_state

    def __len__(self) -> int:
        return len(self._x)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one value for each row: ``(N,)`` or ``(N, T)``."""
        return (len(self),) if self._single else (len(self), len(self._targets))

    def pdf(self, y: Any) -> Array:
        """Return the density at ``y``, per unit of each target; several targets are the last dimension of ``y``."""
        return np.exp(self.log_pdf(y))

    def log_pdf(self, y: Any) -> Array:
        """Return the log of :meth:`pdf`, in nats: of the mean density over some orders of several targets."""
        columns, shape = self._columns("y", y)
        if len(self._targets) == 1:
            found = self._targets[0].log_density(self._x, columns[0])
        else:
            found = self._joint_log_density(columns)
        return found.T.reshape(shape if self._single else shape[:-1])

    def _joint_log_density(self, columns: list[Array]) -> Array:
        """Return the joint log densities of targets, each ``(N, Q)``, ``(N, Q)``."""
        count = columns[0].shape[1]
        flat = [column.reshape(-1, 1) for column in columns]
        place = np.repeat(np.arange(len(self)), count)
        found = np.empty((len(self._orders), len(place)))
        for start in range(0, len(place), CONDITIONALS_AT_A_TIME):
            rows = slice(start, start + CONDITIONALS_AT_A_TIME)
            for k, order in enumerate(self._orders):
                x = self._x[place[rows]].clone()
                terms = np.zeros(len(x))
                for t in order:
                    terms += self._targets[t].log_density(x, flat[t][rows])[:, 0]
                    self._set(x, t, flat[t][rows][:, 0])
                found[k, rows] = terms
        return (np.logaddexp.reduce(found, 0) - np.log(len(found))).reshape(-1, count)

    def _set(self, x: Tensor, t: int, y: Array) -> None:
        """Set the values of a target in encoded rows."""
        target = self._targets[t]
        if target.column is not None:
            x[:, target.column] = torch.from_numpy(target.encode(y))

    def cdf(self, y: Any) -> Array:
        """Return the probability of at most ``y``, of each target given the features."""
        columns, shape = self._columns("y", y)
        found = [target.cdf(self._x, column) for target, column in zip(self._targets, columns, strict=True)]
        return self._merged([np.where(np.isnan(y), np.nan, one) for y, one in zip(columns, found, strict=True)], shape)

    def quantile(self, u: Any) -> Array:
        """Return the smallest values whose :meth:`cdf` is at least ``u``.

        Raises:
            ValueError: If ``u`` is not inside (0, 1).
        """
        columns, shape = self._columns("u", u)
        if not all((((column > 0.0) & (column < 1.0)) | np.isnan(column)).all() for column in columns):
            raise ValueError("u: expected values inside (0, 1)")
        return self._merged(
            [t.quantile(self._x, column) for t, column in zip(self._targets, columns, strict=True)], shape
        )

    def interval(self, coverage: float = 0.9) -> tuple[Array, Array]:
        """Return the ends of the central interval with a probability."""
        if not 0.0 < coverage < 1.0:
            raise ValueError(f"coverage: expected a number between 0 and 1, got {coverage}")
        return self.quantile(0.5 - 0.5 * coverage), self.quantile(0.5 + 0.5 * coverage)

    def mean(self) -> Array:
        """Return the expected values, by quadrature of the quantiles."""
        return self._merged([target.moments(self._x)[0][:, None] for target in self._targets], self.shape)

    def std(self) -> Array:
        """Return the standard deviations."""
        return self._merged([target.moments(self._x)[1][:, None] for target in self._targets], self.shape)

    def median(self) -> Array:
        """Return the medians."""
        return self.quantile(0.5)

    def mode(self) -> Array:
        """Return the values with the highest density or probability.

        A value with a probability of its own has the density of that probability, spread over the noise of the density.
        """
        return self._merged([target.mode(self._x)[:, None] for target in self._targets], self.shape)

    def sample(self, n: int = 1, random_state: Any = None) -> Array:
        """Draw ``n`` values for each row, ``(n, N)`` or ``(n, N, T)``, jointly if there are several targets.

        The default randomness is that of the estimator.
        """
        check_size("sample", n=n)
        random = check_random_state(self._random_state if random_state is None else random_state)
        found = np.empty((n, len(self), len(self._targets)))
        order_of_draw = random.permutation(np.arange(n) % len(self._orders))
        for k, order in enumerate(self._orders):
            draws = np.flatnonzero(order_of_draw == k)
            size = max(1, CONDITIONALS_AT_A_TIME // max(1, len(self)))
            for start in range(0, len(draws), size):
                part = draws[start : start + size]
                found[part] = self._draw(order, random.uniform(size=(len(part), *found.shape[1:])))
        return found[..., 0] if self._single else found

    def _draw(self, order: Sequence[int], u: Array) -> Array:
        """Return the values of uniform numbers ``(n, N, T)`` with the targets in an order."""
        if len(self._targets) == 1:
            return self._targets[0].draw(self._x, _inside(u[..., 0].T)).T[..., None]
        x, drawn = self._x.repeat(len(u), 1), np.empty_like(u)
        for t in order:
            y = self._targets[t].draw(x, _inside(u[..., t].reshape(-1, 1)))[:, 0]
            self._set(x, t, y)
            drawn[..., t] = y.reshape(u.shape[:2])
        return drawn

    def _columns(self, name: str, values: Any) -> tuple[list[Array], tuple[int, ...]]:
        """Return values as arrays ``(N, Q)``, one for each target, and the shape to which they broadcast."""
        given = np.asarray(values, dtype=np.float64)
        try:
            shape = np.broadcast_shapes(given.shape, self.shape)
        except ValueError:
            shape = ()
        if shape[-len(self.shape) :] != self.shape:
            raise ValueError(f"{name}: expected a shape that broadcasts with {self.shape}, got {given.shape}")
        by_target = np.broadcast_to(given, shape).reshape(-1, len(self), len(self._targets))
        return [by_target[..., t].T.copy() for t in range(len(self._targets))], shape

    def _merged(self, columns: list[Array], shape: tuple[int, ...]) -> Array:
        """Return results ``(N, Q)`` of the targets in one array of the shape."""
        return np.stack([column.T for column in columns], -1).reshape(shape)


def _inside(u: Array) -> Array:
    return np.clip(u, np.finfo(float).tiny, 1.0 - np.finfo(float).epsneg)
