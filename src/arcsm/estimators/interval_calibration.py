"""The calibration of expected values: intervals that hold as many held-out values as they promise."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

from arcsm.estimators.column_types import Array, Categories
from arcsm.estimators.table_model import TableModel
from arcsm.estimators.value_conditionals import NODES, value_conditionals
from arcsm.estimators.value_limits import ValueLimits
from arcsm.stored_values import stored

_MIN_VALUES = 10  # held-out values of a column that calibrate its intervals
_MOST_VALUES, _MOST_RANKED = 10_000, 1_200  # of all columns: ranks take longer
_FREQUENT = 0.05  # share of the most frequent value of a column from which on its values are ranked
_MOST_CENTRAL = 1.0 - 1e-6  # probability of an interval


@stored
@dataclass(frozen=True)
class IntervalCalibration:
    """Where held-out values of each column lie in their conditionals given all others of their row.

    The noise of the model widens the conditionals of related columns, so that their intervals hold too many values.

    Attributes:
        centrality: For each modelled column, the probability :math:`|2 F(x) - 1|` of the central interval that ends at
            a held-out value, ``(n,)`` in ascending order; none in a categorical column.
        ranks: The probability of numbers that are more likely than a held-out value, ``(n,)`` in ascending order, by
            the place of each column of numbers in which one value is frequent.

    References:
        A Gentle Introduction to Conformal Prediction (Angelopoulos and Bates, 2021), https://arxiv.org/abs/2107.07511
    """

    centrality: tuple[Array, ...]
    ranks: dict[int, Array]

    @classmethod
    def measure(cls, model: TableModel | None, limits: ValueLimits, modelled: Tensor, held_out: Tensor) -> Self:
        """Measure ``held_out`` rows ``(n, M)``; all fitted rows, ``modelled (N, M)``, say which values are frequent."""
        if model is None:
            return cls((), {})
        numeric = [m for m, kind in enumerate(model.columns.kinds) if not isinstance(kind, Categories)]
        found = model.centrality(held_out[: _MOST_VALUES // held_out.shape[1]]).numpy()
        centrality = tuple(_known(values) if m in numeric else np.zeros(0) for m, values in enumerate(found.T))
        often = [m for m in numeric if _largest_share(_known(modelled[:, m].numpy())) >= _FREQUENT]
        return cls(centrality, _ranks(model, limits, held_out, often) if often else {})

    def central_share(self, m: int, share: float) -> float:
        """Return the probability of the central intervals that hold a ``share`` of a column's values.

        It is the ``share`` itself for categories and for columns with few held-out values.
        """
        return min(_calibrated(self.centrality[m], share), _MOST_CENTRAL)

    def likely_share(self, m: int, share: float) -> float:
        """Return the probability of the most likely numbers that hold a ``share`` of a column's values.

        It is that of :meth:`central_share` unless some value is frequent.
        """
        ranks = self.ranks.get(m, np.zeros(0))
        if len(ranks) < _MIN_VALUES:
            return self.central_share(m, share)
        return min(_calibrated(ranks, share) + 1.0 / NODES, 1.0)  # a rank counts the likelier nodes alone


def _ranks(model: TableModel, limits: ValueLimits, held_out: Tensor, often: list[int]) -> dict[int, Array]:
    """Return the ranks of values of the columns ``often``."""
    is_known = ~np.isnan(held_out[: _MOST_RANKED // len(often)].numpy())
    rows, columns = np.nonzero(is_known & np.isin(np.arange(held_out.shape[1]), often))
    found = value_conditionals(model, limits, held_out, rows, columns) if len(rows) else []
    ranks = np.array([conditional.rank for conditional in found])
    return {m: np.sort(ranks[columns == m]) for m in often}


def _known(values: Array) -> Array:
    """Return the values that are not missing, in ascending order."""
    return np.sort(values[~np.isnan(values)])


def _largest_share(known: Array) -> float:
    """Return the share of values ``(N,)`` that the most frequent one has."""
    return float(np.unique(known, return_counts=True)[1].max() / len(known)) if len(known) else 0.0


def _calibrated(values: Array, share: float) -> float:
    """Return a probability that a new one is below with probability ``share``, from others in ascending order.

    It is the ``share`` itself if these are few.
    """
    if len(values) < _MIN_VALUES:
        return share
    place = math.ceil((1 + len(values)) * share)
    return float(values[place - 1]) if place <= len(values) else max(share, float(values[-1]))
