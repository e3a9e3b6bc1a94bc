"""Peers that fill gaps: means, neighbours, chained linear regressions and chained forests.

References:
    MissForest: non-parametric missing value imputation for mixed-type data (Stekhoven and Bühlmann, 2012)
    mice: Multivariate Imputation by Chained Equations (van Buuren and Groothuis-Oudshoorn, 2011)
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from arcsm.experiments.comparisons import Array
from arcsm.experiments.outside import run_outside
from arcsm.experiments.tables import Table

_NEIGHBOURS = 5
_ITERATIONS = 10  # of chained forests, at most
_CHAINED_ITERATIONS = 5  # of chained boosted trees


class Filled(NamedTuple):
    """A filled table."""

    estimates: Array  # (N, M), the best single values
    draws: Array  # (n, N, M); a single one if the method draws none
    versions: str | None = None  # of libraries outside our requirements


Imputer = Callable[[Table, int, int], Filled]  #: from a table with gaps, a number of draws and a seed


def fill_with_means(table: Table, draws: int, seed: int) -> Filled:
    """Fill with means and most frequent names."""
    filled = table.values.copy()
    for m, levels in enumerate(table.names):
        column = table.values[:, m]
        known = column[~np.isnan(column)]
        filled[np.isnan(column), m] = np.bincount(known.astype(int)).argmax() if levels else known.mean()
    return Filled(filled, filled[None])


def fill_by_neighbours(table: Table, draws: int, seed: int) -> Filled:
    """Fill by the five nearest rows, names as indicators."""
    units = _Units(table)
    filled = units.table_of(KNNImputer(n_neighbors=_NEIGHBOURS).fit_transform(units.values))
    return Filled(filled, filled[None])


def fill_by_chained_regressions(table: Table, draws: int, seed: int) -> Filled:
    """Fill by chained Bayesian linear regressions, names as indicators."""
    units = _Units(table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mean = IterativeImputer(random_state=seed).fit_transform(units.values)
        drawn = [
            IterativeImputer(random_state=seed + k, sample_posterior=True).fit_transform(units.values)
            for k in range(draws)
        ]
    return Filled(units.table_of(mean), np.stack([units.table_of(one) for one in drawn]))


def fill_by_forests(table: Table, draws: int, seed: int) -> Filled:
    """Fill by MissForest: forests of a hundred trees are fitted to each column in turn, until the changes grow."""
    missing = np.isnan(table.values)
    filled, before = fill_with_means(table, draws, seed).estimates, [np.inf, np.inf]
    units = np.where(table.nominal, 1.0, np.maximum(np.nanstd(table.values, 0), 1e-12))
    order = [m for m in missing.sum(0).argsort(kind="stable") if missing[:, m].any()]
    for _ in range(_ITERATIONS):
        last = filled.copy()
        for m in order:
            forest: Any = RandomForestClassifier if table.nominal[m] else RandomForestRegressor
            others, rows = np.delete(filled, m, 1), missing[:, m]
            fitted = forest(max_features="sqrt", random_state=seed).fit(others[~rows], table.values[~rows, m])
            filled[rows, m] = fitted.predict(others[rows])
        change = np.where(table.nominal, filled != last, np.square((filled - last) / units))
        changes = [float(change[:, kind].sum()) for kind in (table.nominal, ~table.nominal)]
        if all(new >= old for new, old in zip(changes, before, strict=True)):
            return Filled(last, last[None])
        before = changes
    return Filled(filled, filled[None])


def fill_by_chained_trees(table: Table, draws: int, seed: int) -> Filled:
    """Fill by miceforest, in an environment of its own."""
    nominal = np.flatnonzero(table.nominal)
    options = {"draws": draws, "seed": seed, "iterations": _CHAINED_ITERATIONS}
    found = run_outside("miceforest", {"values": table.values, "nominal": nominal}, options)
    return Filled(typical(found["filled"], table), found["filled"], str(found["versions"]))


def typical(draws: Array, table: Table) -> Array:
    """Return the means of draws ``(n, N, M)``, and their most frequent names."""
    found = draws.mean(0)
    for m in np.flatnonzero(table.nominal):
        counts = [(draws[:, :, m] == level).sum(0) for level in range(len(table.names[m]))]
        found[:, m] = np.argmax(counts, 0)
    return found


PEERS: Mapping[str, Imputer] = {
    "mean": fill_with_means,
    "KNN": fill_by_neighbours,
    "IterativeImputer": fill_by_chained_regressions,
    "MissForest": fill_by_forests,
    "miceforest": fill_by_chained_trees,
}


class _Units:
    """A table as standardised numbers and indicators of all names of a column but the first, ``(N, U)``.

    With that of the first, too, the indicators of a column would predict each other exactly, and a chain of regressions
    would never leave its start.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.mean, self.unit = np.nanmean(table.values, 0), np.maximum(np.nanstd(table.values, 0), 1e-12)
        parts = []
        for m, levels in enumerate(table.names):
            column = table.values[:, m, None]
            indicators = np.where(np.isnan(column), np.nan, column == np.arange(1, len(levels)))
            parts.append(indicators if levels else (column - self.mean[m]) / self.unit[m])
        self.values = np.concatenate(parts, 1)

    def table_of(self, values: Array) -> Array:
        """Return the numbers and the levels of filled units, ``(N, U)`` to ``(N, M)``."""
        found, start = self.table.values.copy(), 0
        for m, levels in enumerate(self.table.names):
            own = values[:, start : start + (len(levels) - 1 if levels else 1)]
            start += own.shape[1]
            if levels:
                filled = np.column_stack([1.0 - own.sum(1), own]).argmax(1)
            else:
                filled = own[:, 0] * self.unit[m] + self.mean[m]
            missing = np.isnan(found[:, m])
            found[missing, m] = filled[missing]
        return found
