"""The ends of the ranges of columns of numbers: how far beyond the training values others may lie."""

import math

import numpy as np

from arcsm.estimators.column_types import GRID_TOLERANCE, Array, Grid

_MIN_OUTER_ROWS, _MIN_OUTER_ROWS_OF_CONTINUUM = 5, 10  # whose density is compared with that farther in
_THIN = 0.5  # ratio of these densities
_MIN_ROWS_OF_HARD_END = 400  # of a continuum
_GAPS_BEYOND = 3.0  # mean distances of neighbours, to the hard end of a continuum: exceeded in one of twenty
_FARTHER_IN = 10  # times as many rows
_DIGITS = 12  # of the roundest number


def room(grid: Grid, others: Array) -> tuple[int, int]:
    """Return how many steps a grid has beyond each end of its values, given those that are not spikes.

    It has none beyond a spike. Where values thin out towards an end, there is room for as many steps as the range
    has, but not for negative values where there are none. They thin out if the outermost hundredth, and at least five,
    with all values as far in as they reach, are less than half as dense as values are on average. Elsewhere there is
    room for the mean distance between these values, but not beyond the next round number.
    """
    numbers = np.sort(np.rint(grid.encode(others)))
    outer = min(max(_MIN_OUTER_ROWS, len(others) // 100), len(others))
    first, last = numbers[outer - 1], numbers[-outer]
    densities = (
        (numbers <= first).sum() / (1.0 + first - numbers[0]),
        (numbers >= last).sum() / (1.0 + numbers[-1] - last),
    )
    mean_density = len(others) / (1.0 + numbers[-1] - numbers[0])
    low_is_thin, high_is_thin = (density < _THIN * mean_density for density in densities)
    span = grid.spacing * (grid.levels - 1)
    unit = 10.0 ** math.floor(math.log10(span))
    to_zero = int(grid.low / grid.spacing + GRID_TOLERANCE) if grid.low >= 0.0 else grid.levels
    to_round = 0 if grid.low == 1.0 else round(grid.low % unit / grid.spacing)  # counts begin with 1
    from_round = round(-(grid.low + span) % unit / grid.spacing)
    below = min(grid.levels, to_zero) if low_is_thin else min(math.ceil(1.0 / densities[0]) - 1, to_round)
    above = grid.levels if high_is_thin else min(math.ceil(1.0 / densities[1]) - 1, from_round)
    return 0 if numbers[0] > 0 else below, 0 if numbers[-1] < grid.levels - 1 else above


def hard_ends(known: Array, others: Array) -> tuple[float, float]:
    """Return the ends of a continuum, infinite where it has none, given all values and those that are not spikes.

    It ends with a spike that no value lies beyond, and near its outermost values unless they thin out. Values that are
    never negative end at zero, at the latest, unless they are farther from it than from each other.
    """
    lowest, highest = float(known.min()), float(known.max())
    low, high = -_upper_end(-others, -lowest), _upper_end(others, highest)
    if 0.0 <= lowest <= highest - lowest:
        low = max(low, 0.0)
    return low, high


def _upper_end(others: Array, highest: float) -> float:
    """Return the upper end of a continuum, given its highest value.

    Values thin out unless the density of the outermost hundredth, and at least ten, is more than half of that of ten
    times as many; 400 can tell. Otherwise the end is within three mean distances between them: at the roundest number.
    """
    if others.max() < highest:
        return highest
    count = len(others)
    if count < _MIN_ROWS_OF_HARD_END:
        return math.inf
    outer = max(_MIN_OUTER_ROWS_OF_CONTINUUM, count // 100)
    farther = _FARTHER_IN * outer
    depths = highest - np.partition(others, [count - farther, count - outer])[[count - farther, count - outer]]
    if outer * depths[0] <= _THIN * farther * depths[1]:
        return math.inf
    return _roundest(highest, highest + _GAPS_BEYOND * float(depths[1]) / outer)


def _roundest(low: float, high: float) -> float:
    """Return the highest multiple in an interval of the largest power of ten that has one."""
    if low <= 0.0 <= high:
        return 0.0
    largest = math.floor(math.log10(max(-low, high)))
    for exponent in range(largest, largest - _DIGITS, -1):
        multiple = math.floor(float(f"{high / 10.0**exponent:.12g}"))
        found = float(f"{multiple}e{exponent}")
        if low <= found <= high:
            return found
    return high
