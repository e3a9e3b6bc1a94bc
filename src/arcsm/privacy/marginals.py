"""The distribution of one column, from counts with noise."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import norm

from arcsm.privacy.releases import Array, Releases

_OF_VALUES, _OF_MISSING, _OF_STEPS, _OF_MAGNITUDES, _OF_FINE = 0.75, 0.1, 0.1, 0.5, 0.75
_OF_ROUGH = (0.2, 0.2)  # of parts of parts
#: The weights of all releases of a column.
WEIGHT_OF_NAMES = _OF_VALUES + _OF_MISSING
WEIGHT_OF_NUMBERS = WEIGHT_OF_NAMES + _OF_STEPS + _OF_MAGNITUDES + sum(_OF_ROUGH) + _OF_FINE

#: Grids on which numbers may lie.
STEPS_OF_NUMBERS = (100.0, 10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6)
STEPS_OF_TIMES = (86_400.0, 3_600.0, 60.0, 1.0)  # seconds
_ON_GRID = 0.98  # of the numbers
_POWERS = np.exp2(np.arange(-100.0, 201.0))  # magnitudes of numbers
_PARTS = 32  # at most, into which an interval is divided
_CLEAR = 4.0  # standard deviations of the noise above which a count is no noise
_LIKELY = 2.0  # likewise, for one of few counts
_LIKELY_PART = 1.0
_PART = 4.0  # standard deviations of the noise that a part of an interval should have
_TAIL = 1e-3  # of normal scores
_MOST_UNITS = 50  # of a column of names
_NODES = (np.arange(1_000) + 0.5) / 1_000


class NothingToRelease(ValueError):
    """No value of a column is common enough to be told from noise."""


@dataclass(frozen=True)
class Names:
    """The common names of a column, and their shares."""

    names: tuple[str, ...]  # the most common first
    shares: Array  # (K,), which sum to one
    missing: float  # share of missing values

    @property
    def leading(self) -> Array:
        """The shares of the names that have units, at most 50."""
        return self.shares[:_MOST_UNITS]

    def units(self, texts: NDArray[Any]) -> Array:
        """Return indicators of the leading names in ``(N,)`` with mean 0 and variance at most 1, ``(N, U)``.

        They are 0 where a name is not known.
        """
        places = {name: k for k, name in enumerate(self.names)}
        codes = np.array([places.get(text, -1) for text in texts], dtype=int)
        is_name = codes[:, None] == np.arange(len(self.leading))
        return np.where(codes[:, None] >= 0, (is_name - self.leading) / np.sqrt(self.leading), 0.0)

    def own_moments(self) -> Array:
        """Return the second moments of the units, ``(U, U)``."""
        root = np.sqrt(self.leading)
        return np.eye(len(root)) - np.outer(root, root)


@dataclass(frozen=True)
class Numbers:
    """Common numbers of a column, disjoint intervals in which others are uniform, and the shares of both."""

    values: Array  # (V,) in ascending order
    value_shares: Array
    edges: Array  # (I, 2) in ascending order
    edge_shares: Array
    step: float | None  # of the grid on which numbers of the intervals lie
    missing: float  # share of missing values

    def cdf(self, x: Array) -> Array:
        """Return the distribution function ``(N,)``, in the middle of its steps."""
        cumulated = np.concatenate([[0.0], np.cumsum(self.value_shares)])
        below, up_to = (np.searchsorted(self.values, x, side=side) for side in ("left", "right"))
        of_values = 0.5 * (cumulated[below] + cumulated[up_to])
        return np.asarray(of_values + self._cdf_of_intervals(x))

    def _cdf_of_intervals(self, x: Array) -> Array:
        if not len(self.edges):
            return np.zeros(len(x))
        heights = np.repeat(np.concatenate([[0.0], np.cumsum(self.edge_shares)]), 2)[1:-1]
        return np.asarray(np.interp(x, self.edges.ravel(), heights))

    def quantile(self, u: Array) -> Array:
        """Return the inverse of the distribution function at ``u (N,)``."""
        places = np.unique(np.concatenate([self.values, self.edges.ravel()]))
        cumulated = np.concatenate([[0.0], np.cumsum(self.value_shares)])
        of_intervals = self._cdf_of_intervals(places)
        heights = np.stack(
            [cumulated[np.searchsorted(self.values, places, side=side)] + of_intervals for side in ("left", "right")], 1
        )
        found = np.asarray(np.interp(u, heights.ravel(), np.repeat(places, 2)))
        if self.step is None:
            return found
        on_grid = np.round(np.rint(found / self.step) * self.step, 9)
        return np.where(np.isin(found, self.values), found, on_grid)

    def units(self, x: Array) -> Array:
        """Return normal scores of numbers ``(N,)`` with mean 0 and variance 1, ``(N, 1)``; 0 for missing ones."""
        of_nodes = self._scores(self.quantile(_NODES))
        scores = (self._scores(np.nan_to_num(x)) - of_nodes.mean()) / max(float(of_nodes.std()), 1e-3)
        return np.where(np.isnan(x), 0.0, scores)[:, None]

    def _scores(self, x: Array) -> Array:
        return np.asarray(norm.ppf(self.cdf(x).clip(_TAIL, 1.0 - _TAIL)))

    def own_moments(self) -> Array:
        """Return the second moment of the unit, ``(1, 1)``."""
        return np.ones((1, 1))


def release_names(texts: Sequence[str | None], releases: Releases, delta: float) -> Names:
    """Release the names that many rows ``(N,)`` have; ``None`` is missing.

    With a probability of at most ``delta``, a name that one row alone has is among them.
    """
    counts = sorted(Counter(text for text in texts if text is not None).items())  # in an order that tells nothing
    missing = _missing(len(texts) - sum(count for _, count in counts), releases)
    found, kept = _common(np.array([count for _, count in counts], dtype=float), releases, delta)
    if not kept.any():
        raise NothingToRelease
    common = sorted((-mass, name) for (name, _), mass, one in zip(counts, found, kept, strict=True) if one)
    masses = np.array([-mass for mass, _ in common])
    return Names(tuple(name for _, name in common), masses / masses.sum(), _share(missing, float(masses.sum())))


def release_numbers(x: Array, releases: Releases, delta: float, steps: Sequence[float]) -> Numbers:
    """Release the distribution of numbers ``(N,)``; NaN is missing.

    Numbers that many rows have are released as they are, as names are. The others are counted by magnitude, then in
    parts of the magnitudes that occur, and again in parts of these.
    """
    missing = _missing(int(np.isnan(x).sum()), releases)
    limit = np.nextafter(_POWERS[-1], 0.0)
    known = x[~np.isnan(x)].clip(-limit, limit) + 0.0  # without negative zeros
    values, counts = np.unique(known, return_counts=True)
    found, kept = _common(counts.astype(float), releases, delta)
    rest = np.sort(known[~np.isin(known, values[kept])])
    step = _step(rest, releases, steps)
    edges, masses = _magnitudes(rest, releases)
    for weight in (*_OF_ROUGH, _OF_FINE):
        edges, masses = _divided(rest, edges, masses, releases, weight)
    total = found[kept].sum() + masses.sum()
    if total <= 0.0:
        raise NothingToRelease
    return Numbers(
        values[kept], found[kept] / total, edges, masses / total, step, _share(missing, total)
    )  # fmt: skip


def _missing(count: int, releases: Releases) -> float:
    """Release the number of missing values; 0 if it may be noise."""
    found = float(releases.count(np.array(float(count)), _OF_MISSING))
    return found if found > _LIKELY * releases.noise_of(_OF_MISSING) else 0.0


def _share(missing: float, known: float) -> float:
    return missing / (missing + known)


def _common(counts: Array, releases: Releases, delta: float) -> tuple[Array, NDArray[np.bool_]]:
    """Release counts of values, and which of them are so large that one row alone did not make them."""
    found = releases.sums(counts, 1.0, _OF_VALUES)
    return np.rint(found).clip(1.0), found > 1.0 + releases.noise_of(_OF_VALUES) * float(norm.isf(delta))


def _step(rest: Array, releases: Releases, steps: Sequence[float]) -> float | None:
    """Release the largest step of a grid on which nearly all numbers lie."""
    counts, left = [], rest
    for step in steps:
        multiple = np.rint(left / step)
        is_multiple = (np.abs(left / step - multiple) < 1e-6) & ((multiple != 0.0) | (left == 0.0))
        counts.append(float(is_multiple.sum()))
        left = left[~is_multiple]
    found = releases.count(np.array([*counts, float(len(left))]), _OF_STEPS)
    found[found < _LIKELY * releases.noise_of(_OF_STEPS)] = 0.0
    if not found.sum():
        return None
    first = int(np.argmax(np.cumsum(found) >= _ON_GRID * found.sum()))
    return steps[first] if first < len(steps) else None


def _magnitudes(rest: Array, releases: Releases) -> tuple[Array, Array]:
    """Release the powers of two between which numbers lie: edges ``(I, 2)`` and counts ``(I,)``."""
    ends = np.concatenate([-_POWERS[::-1], [0.0], _POWERS])
    edges = np.stack([ends[:-1], ends[1:]], 1)
    found = releases.count(_counts(rest, edges), _OF_MAGNITUDES)
    noise = releases.noise_of(_OF_MAGNITUDES)
    groups, _ = ndimage.label(found > _LIKELY_PART * noise)  # of neighbours
    kept = np.isin(groups, np.unique(groups[found > _CLEAR * noise]))
    return edges[kept], found[kept]


def _divided(rest: Array, edges: Array, masses: Array, releases: Releases, weight: float) -> tuple[Array, Array]:
    """Divide intervals ``(I, 2)`` into parts that should be clear of noise, and release their counts."""
    noise = releases.noise_of(weight)
    parts = [
        np.linspace(low, high, 1 + int(np.clip(round(mass / (_PART * noise)), 1, _PARTS)))
        for (low, high), mass in zip(edges, masses, strict=True)
    ]
    finer = np.concatenate([np.stack([ends[:-1], ends[1:]], 1) for ends in parts]) if parts else edges
    found = releases.count(_counts(rest, finer), weight)
    kept = found > (0.0 if weight == _OF_FINE else _LIKELY_PART * noise)
    return finer[kept], found[kept]


def _counts(rest: Array, edges: Array) -> Array:
    """Return how many sorted numbers are in each interval ``[low, high)``."""
    if not len(edges):
        return np.zeros(0)
    return np.asarray(np.diff(np.searchsorted(rest, edges, side="left"), axis=1)[:, 0], dtype=float)
