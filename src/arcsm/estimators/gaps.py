"""Which columns have gaps, and how much the gaps depend on the values of other columns."""

import numpy as np
from torch import Tensor

from arcsm.estimators.column_types import Array

_SHARE_OF_MOST = 0.25  # gaps of a column, compared with those of the column with most
_GROUPS = 10  # of the values of a column


def columns_with_gaps(x: Tensor) -> list[int]:
    """Return the columns of rows ``(N, M)`` in which many values are missing, compared with the others.

    If gaps depend on other columns, such as measurements taken of one group only, a value that is known tells what
    those are likely to be. So such columns come last in the orders of a density: those with more than a quarter as many
    gaps as the column with most.
    """
    gaps = x.isnan().sum(0)
    found: list[int] = (gaps > _SHARE_OF_MOST * gaps.max()).nonzero()[:, 0].tolist()
    return found


def gap_dependence(x: Tensor) -> float:
    """Return how well a single column of rows ``(N, M)`` predicts how many of their values are known, from 0 to 1.

    It is the largest of the shares of the variance of the log number of known values that groups of a column explain,
    adjusted for the number of groups: 0 if nothing is missing, and about 0 if gaps do not depend on values.
    """
    numbers = x.double().numpy()
    known = ~np.isnan(numbers)
    size = np.log(np.maximum(known.sum(1), 1))
    shares = [_explained(_groups(numbers[here, m]), size[here]) for m, here in enumerate(known.T)]
    return float(max(0.0, *shares)) if shares else 0.0


def _groups(values: Array) -> Array:
    """Return a group for each value, at most ten, with about equal shares."""
    ends = np.unique(np.quantile(values, np.linspace(0.0, 1.0, _GROUPS + 1)[1:-1])) if len(values) else values
    return np.searchsorted(ends, values)  # type: ignore[return-value]


def _explained(groups: Array, y: Array) -> float:
    """Return the adjusted share of the variance of ``y`` that the means of groups explain."""
    labels, index = np.unique(groups, return_inverse=True)
    count, total = len(y), float(np.square(y - y.mean()).sum()) if len(y) else 0.0
    if count <= len(labels) + 1 or total <= 0.0:
        return 0.0
    means = np.bincount(index, y) / np.bincount(index)
    rest = float(np.square(y - means[index]).sum())
    return 1.0 - (rest / (count - len(labels))) / (total / (count - 1))
