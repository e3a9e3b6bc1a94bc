"""Conditionals of single values given all others of their rows, by equally likely numbers."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcsm.estimators.column_types import Array
from arcsm.estimators.table_model import TableModel
from arcsm.estimators.value_limits import ValueLimits

NODES = 40  # quantiles that represent a conditional
_ROUNDING = 1e-6  # nats


@dataclass(frozen=True)
class ValueConditional:
    """The conditional of one value of a row.

    Attributes:
        nodes: Equally likely numbers in ascending order, ``(K,)``; in a discrete column, numbers that occur.
        log_density: Their log densities, ``(K,)``.
        number: The number of the row's value.
        log_density_here: Its log density.
        share: Share of the nodes that are expected.
        limits: The lowest and the highest plausible number; infinite for categories.
        log_density_of_limits: Their log densities; -infinity for categories.
    """

    nodes: Array
    log_density: Array
    number: float
    log_density_here: float
    share: float = 0.9
    limits: tuple[float, float] = (-math.inf, math.inf)
    log_density_of_limits: tuple[float, float] = (-math.inf, -math.inf)

    @property
    def rank(self) -> float:
        """The share of nodes that are more likely than the value."""
        return float((self.log_density > self.log_density_here + _ROUNDING).mean())

    @property
    def most_likely(self) -> float:
        """The most likely of the nodes."""
        return float(self.nodes[self.log_density.argmax()])

    @property
    def _threshold(self) -> float:
        """The lowest log density of a number that is expected."""
        unexpected = int((1.0 - self.share) * len(self.nodes) + _ROUNDING)
        return float(np.sort(self.log_density)[unexpected]) - _ROUNDING

    @property
    def _likely(self) -> NDArray[np.bool_]:
        """Which nodes are among the most likely ones, unless the value is."""
        threshold = self._threshold
        return (self.log_density >= threshold) & (self.log_density_here < threshold)

    def expected_levels(self) -> list[int]:
        """Return the expected levels of a discrete column, the most likely first; none if the value is expected."""
        levels, counts = np.unique(self.nodes[self._likely], return_counts=True)
        return levels[np.argsort(-counts, kind="stable")].astype(int).tolist()

    def expected_intervals(self) -> Array:
        """Return the intervals of expected numbers, which leave out the value, ``(R, 2)``; none if it is expected.

        An interval with the outermost node reaches to the limit, if that is expected: quantiles stop short of it.
        """
        places = np.flatnonzero(self._likely)
        if not len(places):
            return np.empty((0, 2))
        low, high = self.nodes[places[:-1]], self.nodes[places[1:]]
        ends = np.flatnonzero((np.diff(places) > 1) | (low < self.number) & (self.number < high))
        first, last = np.append(0, ends + 1), np.append(ends, len(places) - 1)
        found = np.stack([self.nodes[places[first]], self.nodes[places[last]]], 1)
        low_is_likely, high_is_likely = (density >= self._threshold for density in self.log_density_of_limits)
        if low_is_likely and places[0] == 0 and not self.limits[0] <= self.number <= found[0, 0]:
            found[0, 0] = self.limits[0]
        if high_is_likely and places[-1] == len(self.nodes) - 1 and not found[-1, 1] <= self.number <= self.limits[1]:
            found[-1, 1] = self.limits[1]
        return found


def value_conditionals(
    model: TableModel, limits: ValueLimits, x: Tensor, rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> list[ValueConditional]:
    """Return the conditionals of the values of ``x (N, M)`` in these rows and columns, ``(I,)`` each.

    Numbers beyond the limits of the other rows are left out, so that gross errors do not make themselves expected.
    """
    low, high = (limit[rows, columns] for limit in limits.of_other_rows(x.numpy()))
    x, d, here = x[rows], torch.from_numpy(columns), x[rows, columns].numpy()
    u = (torch.arange(NODES, dtype=torch.float64) + 0.5) / NODES
    quantiles = model.conditional_quantiles(x, d, u).numpy()  # (I, K)
    nodes = np.stack([limits.nearest_levels(*pair) for pair in zip(columns, quantiles, strict=True)])
    ends = np.stack([np.where(np.isfinite(limit), limit, here) for limit in (low, high)], 1)
    values = torch.from_numpy(np.concatenate([nodes, ends, here[:, None]], 1))
    log_densities = model.conditional_log_density(x, d, values).numpy()  # (I, K + 3)
    found = []
    for place, (one, log_density) in enumerate(zip(nodes, log_densities, strict=True)):
        inside = (low[place] <= one) & (one <= high[place])
        kept, density, density_here = one[inside], log_density[:NODES][inside], log_density[-1]
        if not inside.any():  # the conditional expects gross errors alone
            kept, density, density_here = np.array([low[place], high[place]]), np.zeros(2), 0.0
        if not low[place] <= here[place] <= high[place]:
            density_here = -np.inf
        of_limits = log_density[NODES:-1] if np.isfinite(low[place]) else np.full(2, -np.inf)
        found.append(
            ValueConditional(
                kept, density, float(here[place]), float(density_here), limits=(float(low[place]), float(high[place])),
                log_density_of_limits=(float(of_limits[0]), float(of_limits[1])),
            )
        )  # fmt: skip
    return found
