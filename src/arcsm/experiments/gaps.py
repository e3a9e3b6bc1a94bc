"""Tables whose values are hidden at random, depending on other columns or on themselves; and how well they are filled.

References:
    Strictly Proper Scoring Rules, Prediction, and Estimation (Gneiting and Raftery, 2007)
    Inference and Missing Data (Rubin, 1976)
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from arcsm.experiments.comparisons import Array
from arcsm.experiments.tables import Table

Mechanism = Literal["mcar", "mar", "mnar"]
MECHANISMS: tuple[Mechanism, ...] = ("mcar", "mar", "mnar")
_ALWAYS_KNOWN = 1.0 / 3.0  # of the columns, on which gaps of the others depend ("mar")
_STEEPNESS = 2.0  # of the log odds of a gap, for each standard deviation of what it depends on
_SAME_NUMBER = 1e-9  # standard deviations between a number and a draw that equals it
_ROUNDS = 60  # of the bisection of an intercept


def hide(table: Table, mechanism: Mechanism, share: float, seed: int) -> NDArray[np.bool_]:
    """Return which known values to hide, ``(N, M)``.

    - ``mcar``: each with probability ``share``.
    - ``mar``: a third of the columns has no gaps; those of the others depend on a random combination of its columns.
    - ``mnar``: whether a value is hidden depends on the value itself: the large ones of half of the columns, and the
      small ones of the others.

    Where gaps depend on something, the log odds are linear in its normal scores, and a column has the ``share`` of gaps
    on average. Names count by a random rank of their levels.
    """
    random = np.random.default_rng([seed, MECHANISMS.index(mechanism)])
    values, columns = table.values, table.values.shape[1]
    probability = np.full(values.shape, share)
    if mechanism != "mcar":
        scores = np.stack([_normal_scores(table, m, random) for m in range(columns)], 1)
        always_known = random.permutation(columns)[: max(1, round(_ALWAYS_KNOWN * columns))]
        for m in range(columns):
            own = random.choice([-1.0, 1.0]) * scores[:, m]
            cause = own if mechanism == "mnar" else scores[:, always_known] @ random.normal(size=len(always_known))
            probability[:, m] = _with_mean(cause / max(float(cause.std()), 1e-12), share)
        if mechanism == "mar":
            probability[:, always_known] = 0.0
    return (random.random(values.shape) < probability) & ~np.isnan(values)


def _normal_scores(table: Table, m: int, random: np.random.Generator) -> Array:
    """Return normal scores of the ranks of a column, ``(N,)``; 0 for gaps."""
    column, levels = table.values[:, m], table.names[m]
    known = ~np.isnan(column)
    found = np.zeros(len(column))
    numbers = random.permutation(len(levels))[column[known].astype(int)] if levels else column[known]
    found[known] = special.ndtri(stats.rankdata(numbers) / (known.sum() + 1.0))
    return found


def _with_mean(cause: Array, share: float) -> Array:
    """Return probabilities whose log odds are linear in a standardised cause ``(N,)``, with a mean."""
    low, high = -50.0, 50.0
    for _ in range(_ROUNDS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if special.expit(_STEEPNESS * cause + middle).mean() < share else (low, middle)
    return np.asarray(special.expit(_STEEPNESS * cause + low))


def quality(table: Table, hidden: NDArray[np.bool_], estimates: Array, draws: Array) -> dict[str, float | None]:
    """Return how near filled values are to the hidden ones.

    Arguments:
        table: The complete table, ``(N, M)``.
        hidden: The values that were filled.
        estimates: The best single values, ``(N, M)``.
        draws: Draws of them, ``(n, N, M)``; a single one counts as certain.

    Returns:
        Means over the columns, each weighted alike: ``rmse`` of numbers, in standard deviations (the root of the mean
        square); ``error``, the share of wrong names; ``crps`` of all columns, the continuous ranked probability score
        in standard deviations, with the distance 1 of different names; ``coverage``, the share of hidden numbers that
        rank neither first nor last among the ``n`` draws: (n - 1) / (n + 1) are expected. A number that some draws
        equal has a random rank among these. ``None`` without such columns, and without draws.
    """
    squares, errors, scores, covered = list[float](), list[float](), list[float](), list[float]()
    for m in np.flatnonzero(hidden.any(0)):
        rows = hidden[:, m]
        truth, found, drawn = table.values[rows, m], estimates[rows, m], draws[:, rows, m]
        if table.nominal[m]:
            errors.append(float((found != truth).mean()))
            scores.append(_energy((drawn != truth).astype(float), _different(drawn)))
            continue
        unit = max(float(np.nanstd(table.values[:, m])), 1e-12)
        squares.append(float(np.square((found - truth) / unit).mean()))
        scores.append(_energy(np.abs(drawn - truth) / unit, _mean_distances(drawn) / unit))
        if len(draws) > 1:
            covered.append(_coverage((drawn - truth) / unit))
    return {
        "rmse": float(np.sqrt(np.mean(squares))) if squares else None,
        "error": float(np.mean(errors)) if errors else None,
        "crps": float(np.mean(scores)) if scores else None,
        "coverage": float(np.mean(covered)) if covered else None,
    }


def _coverage(differences: Array) -> float:
    """Return the share of numbers that rank neither first nor last among their draws, from differences ``(n, K)``."""
    equal = 1.0 + (np.abs(differences) <= _SAME_NUMBER).sum(0)
    is_lowest, is_highest = (differences >= -_SAME_NUMBER).all(0), (differences <= _SAME_NUMBER).all(0)
    return float(1.0 - (is_lowest / equal + is_highest / equal).mean())


def _energy(to_truth: Array, among_draws: Array) -> float:
    """Return the mean score from distances of draws to the truth ``(n, K)`` and mean ones among draws ``(K,)``."""
    return float((to_truth.mean(0) - 0.5 * among_draws).mean())


def _mean_distances(drawn: Array) -> Array:
    """Return the mean distance of two different draws, ``(n, K)`` to ``(K,)``; 0 for a single one."""
    n = len(drawn)
    if n == 1:
        return np.zeros(drawn.shape[1])
    weights = 2.0 * np.arange(n) - n + 1.0  # of the sorted draws
    return np.asarray(2.0 * (weights @ np.sort(drawn, 0)) / (n * (n - 1)))


def _different(drawn: Array) -> Array:
    """Return the share of pairs of different draws that have different names, ``(n, K)`` to ``(K,)``."""
    n = len(drawn)
    same = (drawn[:, None] == drawn).sum((0, 1)) - n
    return np.asarray(1.0 - same / (n * (n - 1.0))) if n > 1 else np.zeros(drawn.shape[1])
