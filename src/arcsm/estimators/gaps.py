"""Which columns have gaps that depend on the values of other columns, and how much."""

from typing import NamedTuple

import numpy as np
from scipy import stats
from torch import Tensor

from arcsm.estimators.column_types import Array

_GROUPS = 10  # of the values of a column
_FEWEST, _MOST, _MOST_VALUES = 500, 5_000, 200_000  # rows that are examined, and values, which limit them
_LEVEL = 0.01  # probability that a table in which nothing depends on values is said to have a dependence


class GapDependence(NamedTuple):
    """What the values of columns tell about gaps in others."""

    columns: list[int]  #: with gaps that the values of another column predict, better than by chance
    share: float  #: of the variance of the log number of known values, that groups of one column explain; from 0 to 1


def gap_dependence(x: Tensor) -> GapDependence:
    """Return which gaps of rows ``(N, M)`` depend on values, by analyses of variance.

    The values of a column form at most ten groups. The share is adjusted for their number, and 0 if it may be due to
    chance.
    """
    numbers = x[: min(_MOST, max(_FEWEST, _MOST_VALUES // max(1, x.shape[1])))].double().numpy()
    known = (~np.isnan(numbers)).astype(float)
    size = np.log(np.maximum(known.sum(1, keepdims=True), 1.0))
    outcomes, columns = np.concatenate([known, size], 1), numbers.shape[1]
    least = _LEVEL / max(1, columns * (columns + 1))
    depends, share = np.zeros(columns, dtype=bool), 0.0
    for m in range(columns) if not known.all() else ():
        explained, p_values = _analyse_variance(_groups(numbers[:, m]), outcomes)
        depends |= p_values[:-1] < least
        share = max(share, explained[-1] if p_values[-1] < least else 0.0)
    return GapDependence(np.flatnonzero(depends).tolist(), float(share))


def _groups(values: Array) -> Array:
    """Return which of at most ten groups of about equal size each value is in, ``(N, G)``; none if it is missing."""
    known = ~np.isnan(values)
    if not known.any():
        return np.zeros((len(values), 0))
    ends = np.unique(np.quantile(values[known], np.linspace(0.0, 1.0, _GROUPS + 1)[1:-1], method="nearest"))
    index = np.searchsorted(ends, values)
    found = np.eye(len(ends) + 1)[index] * known[:, None]
    return found[:, found.any(0)]  # type: ignore[no-any-return]


def _analyse_variance(groups: Array, outcomes: Array) -> tuple[Array, Array]:
    """Return the adjusted share of the variance of outcomes ``(N, K)`` that groups ``(N, G)`` explain, and p-values.

    They are ``(K,)`` each, from one-way analyses of variance of the rows with a group.
    """
    counts, here = groups.sum(0), groups.sum(1) > 0.0
    rows, degrees = int(here.sum()), groups.shape[1] - 1
    nothing = np.zeros(outcomes.shape[1])
    if degrees < 1 or rows <= degrees + 1:
        return nothing, nothing + 1.0
    centred = np.where(here[:, None], outcomes - outcomes[here].mean(0), 0.0)
    total = np.square(centred).sum(0)
    between = (np.square(groups.T @ centred) / counts[:, None]).sum(0)
    varies = total > 1e-9 * rows
    rest = np.maximum(total - between, 1e-12 * rows) / (rows - degrees - 1)
    statistic = np.where(varies, between / degrees / rest, 0.0)
    explained = np.where(varies, 1.0 - rest * (rows - 1) / np.where(varies, total, 1.0), 0.0)
    return np.maximum(explained, 0.0), np.where(varies, stats.f.sf(statistic, degrees, rows - degrees - 1), 1.0)
