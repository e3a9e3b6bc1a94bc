"""The types of a table's columns, inferred from training values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from arcsm.estimators.column_types import (
    GRID_TOLERANCE,
    MAX_LEVELS,
    MAX_LEVELS_OF_NUMBERS,
    Array,
    Categories,
    Column,
    Constant,
    Grid,
    Listed,
    Values,
    missing_mask,
)
from arcsm.estimators.continua import Asinh, Continuous, Identity, Power
from arcsm.estimators.range_ends import hard_ends, room

_MIN_REPEATED_FRACTION = 0.05  # of the values on a grid, for them to count as discrete
_MIN_MULTIPLES = 20  # of a whole number above 1, for it to be a step although no value repeats
_STEP_DIVISORS = (1, 2, 3, 4, 5, 10)  # of the smallest gap between values
_MIN_SPIKE_SHARE = 0.01  # of the values, of one that has a probability of its own
_MIN_SPIKE_ROWS = 10
_SPIKE_RATIO = 3.0  # to the frequency of the values near it
_NEIGHBOURS = 5  # different values on either side
_MIN_ROWS_OF_LEVEL = 20  # on average, if the numbers on a grid that have levels are many
_MIN_REPEATS = 5.0  # mean number of rows of each of the values that lie on no grid, for each to have a level
_MAX_LISTED = 500  # such values
_MIN_OTHERS = 10  # different values that are no spikes
_FINE_STEP = 0.02  # of a grid that counts as a continuum, in standard deviations of nearly normal numbers
MIN_GAIN = 0.02  # nats per value, for a nonlinear map to replace the linear one
_MAX_NAMES_IN_MODEL = 256  # of a categorical column; rarer names share one level


@dataclass(frozen=True)
class NumberRules:
    """What a column of numbers becomes: levels, a grid or a continuum.

    If each number has a level, it need not resemble its neighbours, which suits more tables. A detector of outliers has
    hardly any such columns: the distances between numbers say how far out one is.
    """

    few: int = MAX_LEVELS_OF_NUMBERS  # the most different values of a column in which each has a level
    most: int = MAX_LEVELS_OF_NUMBERS  # likewise, if many rows have each
    map_grids: bool = True  # whether skewed numbers on a fine grid are mapped like a continuum


DEFAULT_RULES = NumberRules()


def infer_column(
    values: Values, categorical: bool, rules: NumberRules = DEFAULT_RULES, order: Sequence[Any] = ()
) -> Column:
    """Infer the type of a column from its training values ``(N,)``; categories may look like numbers.

    The ``order`` has all categories of a column in which they have one.
    """
    known = values[~missing_mask(values)]
    if len(pd.unique(known)) == 1:
        return Constant(known[0], len(known))
    if categorical:
        counts = pd.Series(known).value_counts(sort=True)
        if 0 < len(counts) <= _MAX_NAMES_IN_MODEL and len(order):
            return Categories(tuple(name for name in order if name in counts.index), len(known), ordered=True)
        rarest = tuple(counts.iloc[_MAX_NAMES_IN_MODEL - 1 :].tolist()) if len(counts) > _MAX_NAMES_IN_MODEL else ()
        return Categories(tuple(counts.index), len(known), rarest)
    return infer_numbers(known.astype(float), rules)


def infer_numbers(known: Array, rules: NumberRules = DEFAULT_RULES, linear: bool = False) -> Column:
    """Infer the type of a column of numbers: levels, a grid or a continuum, the last two perhaps with spikes.

    A skewed column on a fine grid is a continuum whose decoded values are rounded, since a grid is not transformed;
    unless the map of a continuum must be ``linear``, or the rules map no grids. The values of :func:`listed` may be
    more than a few only if those of a grid may.
    """
    grid = detect_grid(known, rules)
    if grid is not None and grid.few:
        return grid
    found = listed(known, rules) if grid is None else None
    if found is not None and (found.levels <= rules.few or rules.most > rules.few):
        return found
    spikes, others = _spikes_and_others(known)
    if grid is not None:
        grid = replace(grid, room=room(grid, others))
    smooth = fit_continuous(others, known, linear or (grid is not None and not rules.map_grids))
    smooth = replace(smooth, spikes=tuple(spikes.tolist()))
    if grid is None:
        return replace(smooth, hard_ends=hard_ends(known, others))
    steps = np.exp(smooth.log_slope(smooth.encode(others))) * grid.spacing
    if not isinstance(smooth, Identity) and np.quantile(steps, 0.95) < _FINE_STEP:
        return replace(smooth, grid=grid)
    return replace(grid, spikes=smooth.spikes)


def listed(known: Array, rules: NumberRules = DEFAULT_RULES) -> Listed | None:
    """Return the type of a column of values that lie on no grid, and nearly all repeat; ``None`` for another column.

    The values have five rows each on average, also those that are no spikes, unless they are few. A continuum would not
    draw a single one of them.
    """
    values = np.unique(known)
    others = known if len(values) <= rules.few else _spikes_and_others(known)[1]
    if not 2 <= len(values) <= _MAX_LISTED or len(others) < _MIN_REPEATS * len(np.unique(others)):
        return None
    gap = float(np.diff(values).min())
    return Listed(gap, float(values[0]), len(values), False, (), len(known), tuple(values.tolist()))


def _spikes_and_others(known: Array) -> tuple[Array, Array]:
    """Return the spikes, unless they leave hardly another value, and the values in rows without one."""
    spikes = find_spikes(known)
    others = known[~np.isin(known, spikes)]
    return (spikes, others) if len(np.unique(others)) >= _MIN_OTHERS else (np.empty(0), known)


def find_spikes(known: Array) -> Array:
    """Return the values that are far more frequent than those near them, in ascending order.

    They occur in one of a hundred rows and in at least ten, and are more than three times as frequent as the median of
    the ten different values nearest in rank.
    """
    values, counts = np.unique(known, return_counts=True)
    frequent = np.flatnonzero(counts >= max(_MIN_SPIKE_ROWS, _MIN_SPIKE_SHARE * len(known)))
    found = []
    for place in frequent.tolist():
        first = min(max(place - _NEIGHBOURS, 0), max(len(values) - 1 - 2 * _NEIGHBOURS, 0))
        near = np.delete(counts[first : first + 2 * _NEIGHBOURS + 1], place - first)
        if counts[place] > _SPIKE_RATIO * np.median(near):
            found.append(values[place])
    return np.array(found)


def detect_grid(known: Array, rules: NumberRules = DEFAULT_RULES) -> Grid | None:
    """Return the grid of a column's values, or ``None`` if they lie on none.

    They must repeat, or be many multiples of a whole number such as 100.
    """
    levels = np.unique(known)
    if len(levels) < 2:
        return None
    gaps = np.diff(levels)
    whole = bool((levels == np.rint(levels)).all()) and levels[-1] - levels[0] < 2**53
    common = float(np.gcd.reduce(gaps.astype(np.int64))) if whole else 0.0  # divisor of all gaps
    repeat = 1.0 - len(levels) / len(known) >= _MIN_REPEATED_FRACTION
    if not repeat and not (common > 1.0 and len(levels) >= _MIN_MULTIPLES):
        return None
    if whole:
        candidates = [common]
    else:
        smallest = float(gaps[gaps > 1e-7 * (levels[-1] - levels[0])].min())
        candidates = [smallest / divisor for divisor in _STEP_DIVISORS]
    for step in candidates:
        places = np.rint((levels - levels[0]) / step)
        if places[-1] >= MAX_LEVELS:
            return None
        step = float((places * (levels - levels[0])).sum() / np.square(places).sum())  # least squares
        if np.abs(levels - levels[0] - step * places).max() <= GRID_TOLERANCE * step:
            distinct = () if whole else tuple(levels.tolist())
            few = tuple(levels.tolist()) if _have_levels(levels, known, rules) else ()
            step, low = (step, float(levels[0])) if whole else _unrounded(step, levels)
            return Grid(step, low, int(places[-1]) + 1, whole, distinct, len(known), few)
    return None


def _unrounded(step: float, levels: Array) -> tuple[float, float]:
    """Return the step and the lowest value of a grid of fractions such as thirds, which a file rounds."""
    parts = round(1.0 / step)
    numerators = np.rint(levels * parts)
    if parts < 2 or np.abs(levels * parts - numerators).max() > GRID_TOLERANCE:
        return step, float(levels[0])
    return 1.0 / parts, float(numerators[0] / parts)


def _have_levels(values: Array, known: Array, rules: NumberRules) -> bool:
    """Return whether the different values of a grid have a level each: they are few, or have many rows each."""
    count = len(values)
    return count <= rules.few or (count <= rules.most and len(known) >= _MIN_ROWS_OF_LEVEL * count)


def fit_continuous(known: Array, all_known: Array | None = None, linear: bool = False) -> Continuous:
    """Fit the map that makes the values most nearly normal, by maximum likelihood; its range is that of all values.

    A ``linear`` map has no nonlinear candidates.
    """
    ranged = known if all_known is None else all_known
    return replace(_most_normal(known, float(ranged.min()), float(ranged.max()), linear), training_rows=len(ranged))


def _most_normal(known: Array, lowest: float, highest: float, linear: bool) -> Continuous:
    """Return the map of :func:`fit_continuous` with a range."""
    span = (lowest, highest)
    largest = float(np.abs(known).max())
    deviation = largest * float((known / largest).std())  # the squares of tiny numbers would underflow
    identity = Identity(float(known.mean()), deviation or 1.0, *span)
    if linear:
        return identity
    middle = float(np.median(known))
    low, high = np.quantile(known, [0.25, 0.75])
    scale = float(high - low) / 1.349  # the interquartile range of a standard normal
    if scale <= 0.0 or len(known) < 20:
        scale = identity.scale
    candidates: list[Continuous] = [Asinh(middle, scale, *span)]
    z = (known - middle) / scale
    if np.abs(z).max() < 1e6:
        exponent = float(np.clip(stats.yeojohnson_normmax(z), 0.0, 2.0))
        candidates.append(Power(middle, scale, *span, exponent))
    baseline = _normal_log_likelihood(identity, known)
    gains = [_normal_log_likelihood(candidate, known) - baseline for candidate in candidates]
    best = int(np.argmax(gains))
    return candidates[best] if gains[best] > MIN_GAIN else identity


def _normal_log_likelihood(column: Column, known: Array) -> float:
    """Return the mean log likelihood of a normal fit to the numbers, in nats per value, up to a constant."""
    numbers = column.encode(known)
    return float(-np.log(max(numbers.std(), 1e-300)) + column.log_slope(numbers).mean())
