"""Statistics over seeds, paired comparisons on the same test rows, and ranks over data sets.

References:
    Demsar, "Statistical comparisons of classifiers over multiple data sets", JMLR 2006.
"""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from arcsm.metrics import mean_and_standard_error
from arcsm.reports.plots import BLUE, GREY

Array = NDArray[np.float64]
RowLosses = Mapping[int, Sequence[float]]  #: losses of one method on every test row, by seed


def mean_and_sd(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean and the standard deviation, which is ``None`` for a single value."""
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}


def over_seeds(cells: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
    """Return mean and standard deviation over the cells of some measures; ``None`` for one that no cell has."""
    known = {key: [cell[key] for cell in cells if cell[key] is not None] for key in keys}
    return {key: mean_and_sd(values) if values else None for key, values in known.items()}


def confidence_interval(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean and half the width of its 95 % interval (Student's t), ``None`` for a single value."""
    count, moments = len(values), mean_and_sd(values)
    half = None if count < 2 else float(stats.t.ppf(0.975, count - 1)) * moments["sd"] / math.sqrt(count)
    return {"mean": moments["mean"], "half_width": half}


def summarise_rows(losses: RowLosses) -> dict[str, Any]:
    """Return the mean loss of one method, its standard error over the rows, and the mean of each seed."""
    by_seed = [torch.tensor(rows) for rows in losses.values()]
    mean, error = mean_and_standard_error(torch.stack(by_seed).mean(0))
    seed_means = [float(rows.mean()) for rows in by_seed]
    return {
        "nll": mean,
        "standard_error": error,
        "nll_of_each": dict(losses),
        "sd_over_seeds": mean_and_sd(seed_means)["sd"],
        "of_each_seed": seed_means,
    }


def compare_with_best(
    methods: Mapping[str, RowLosses], candidates: Collection[str] | None = None
) -> tuple[str, dict[str, list[float]], dict[str, list[float]]]:
    """Compare methods with the best of the candidates (default: of all), row by row. Smaller losses are better.

    Return the best method, the mean difference of each method to it with its standard error, and that difference for
    each seed. Two methods are compared on the seeds that both have. The standard error covers the rows, which all
    methods share, and the seeds if there are several.
    """
    losses = {name: {seed: torch.tensor(rows) for seed, rows in by_seed.items()} for name, by_seed in methods.items()}

    def difference(method: str, other: str) -> Tensor:
        """Return differences of losses, ``(seeds, rows)``."""
        a, b = losses[method], losses[other]
        return torch.stack([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])

    names = list(losses if candidates is None else candidates)
    best = min(names, key=lambda method: max(float(difference(method, other).mean()) for other in names))
    differences = {method: difference(method, best) for method in losses}
    return (
        best,
        {method: _mean_and_error(values) for method, values in differences.items()},
        {method: values.mean(1).tolist() for method, values in differences.items()},
    )


def _mean_and_error(differences: Tensor) -> list[float]:
    mean, row_error = mean_and_standard_error(differences.mean(0))
    seed_error = mean_and_standard_error(differences.mean(1))[1]
    return [mean, math.hypot(row_error or 0.0, seed_error or 0.0)]


def mean_ranks(values: Array) -> Array:
    """Return the mean rank of each method, ``(sets, methods)`` to ``(methods,)``; the largest value has rank 1."""
    return np.asarray(stats.rankdata(-values, axis=1).mean(0), dtype=np.float64)


def critical_difference(methods: int, sets: int) -> float | None:
    """Return the smallest significant difference of mean ranks (Nemenyi, 5 %); ``None`` for a single method."""
    if methods < 2:
        return None
    studentised = float(stats.studentized_range.ppf(0.95, methods, math.inf)) / math.sqrt(2.0)
    return studentised * math.sqrt(methods * (methods + 1) / (6.0 * sets))


def draw_ranks(axes: Axes, ranks: Mapping[str, float], critical: float | None, ours: str, size: int) -> list[str]:
    """Draw mean ranks as bars, best first, and shade what is not significantly different; return the order."""
    order = sorted(ranks, key=lambda name: ranks[name])
    axes.barh(order, [ranks[name] for name in order], color=[BLUE if name == ours else GREY for name in order])
    axes.invert_yaxis()
    if critical is not None:
        axes.axvspan(ranks[order[0]], ranks[order[0]] + critical, color=BLUE, alpha=0.12)
    axes.set_xlabel("mean rank (shaded: no significant difference)", fontsize=size)
    axes.tick_params(labelsize=size)
    return order
