"""Which columns with an order have levels that are better learned one by one, as names are."""

import math

import numpy as np
from scipy import stats
from torch import Tensor

from arcsm.estimators.column_types import Array

_COSINES = 8  # along the levels, that describe a smooth dependence
_FEWEST_DEGREES = 8  # levels beyond these, for a test
_LEVEL = 0.01  # probability that a table without rough levels is said to have some
_LEAST_SHARE = 0.01  # of the variance of another column, that single levels must explain beyond the cosines
_MOST_ROWS, _MOST_LEVELS = 10_000, 16  # rows that are examined; levels of other columns, each an outcome


def rough_levels(levels: Tensor, counts: list[int], candidates: list[int]) -> list[int]:
    """Return the candidates on whose single levels another column depends, more than on eight cosines along them.

    Prices, codes and identifiers are such columns: neighbours among their numbers need not resemble each other. Each
    other column is regressed on the cosines, and the mean of each level is tested for a lack of fit.

    Arguments:
        levels: Rows as the model sees them, ``(N, D)``: numbers and levels, NaN where a value is missing.
        counts: Number of levels of each dimension; 0 for numbers.
        candidates: The dimensions of numbers with a level each.
    """
    rows = levels[:_MOST_ROWS].double().numpy()
    outcomes = {d: _outcomes(rows[:, d], count) for d, count in enumerate(counts)}
    tests = sum(one.shape[1] for one in outcomes.values()) * max(1, len(candidates))
    return [
        d for d in candidates
        if any(_lacks_fit(rows[:, d], one, counts[d], _LEVEL / tests) for e, one in outcomes.items() if e != d)
    ]  # fmt: skip


def _outcomes(column: Array, count: int) -> Array:
    """Return ranks of numbers or of many levels, or an indicator of each of few levels, ``(N, K)``."""
    known = ~np.isnan(column)
    if 0 < count <= _MOST_LEVELS:
        found = (column[:, None] == np.arange(count)).astype(float)
    else:
        found = np.full((len(column), 1), np.nan)
        found[known, 0] = stats.rankdata(column[known])
    return np.where(known[:, None], found, np.nan)


def _lacks_fit(levels: Array, outcomes: Array, count: int, threshold: float) -> bool:
    """Return whether any of the outcomes ``(N, K)`` depends on single levels ``(N,)``."""
    here = ~np.isnan(levels) & ~np.isnan(outcomes).any(1)
    places, y = levels[here].astype(int), outcomes[here]
    frequency = np.bincount(places, minlength=count)
    degrees, rest = int((frequency > 0).sum()) - _COSINES - 1, len(places) - int((frequency > 0).sum())
    if degrees < _FEWEST_DEGREES or rest < 1:
        return False
    y = y - y.mean(0)
    total = np.square(y).sum(0)
    sums = np.zeros((count, y.shape[1]))
    np.add.at(sums, places, y)
    by_level = (np.square(sums) / np.maximum(frequency, 1)[:, None]).sum(0)
    cosines = np.cos(math.pi * np.arange(_COSINES + 1) * (np.arange(count)[:, None] + 0.5) / count)
    root = np.sqrt(frequency)[:, None]  # one weighted row for each level
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(frequency[:, None] > 0, sums / frequency[:, None], 0.0)
    fitted = root * (cosines @ np.linalg.lstsq(root * cosines, root * means, rcond=None)[0])
    beyond = by_level - np.square(fitted).sum(0)
    varies = total > 1e-9 * len(places)
    error = np.maximum(total - by_level, 1e-12 * np.maximum(total, 1e-12)) / rest
    p_values = np.where(varies, stats.f.sf(beyond / degrees / error, degrees, rest), 1.0)
    share = np.where(varies, (beyond - degrees * error) / np.where(varies, total, 1.0), 0.0)
    return bool(((p_values < threshold) & (share > _LEAST_SHARE)).any())
