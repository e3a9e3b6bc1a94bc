"""Methods compared over many data sets by their ranks (Demsar, "Statistical comparisons of classifiers", 2006)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


def mean_ranks(values: Array) -> Array:
    """Mean rank of each method, ``(sets, methods)`` to ``(methods,)``; the largest value of a set has rank 1."""
    return np.asarray(stats.rankdata(-values, axis=1).mean(0), dtype=np.float64)


def critical_difference(methods: int, sets: int) -> float | None:
    """By how much mean ranks must differ to be told apart at 5 % (Nemenyi's test); ``None`` for a single method."""
    if methods < 2:
        return None
    studentised = float(stats.studentized_range.ppf(0.95, methods, math.inf)) / math.sqrt(2.0)
    return studentised * math.sqrt(methods * (methods + 1) / (6.0 * sets))
