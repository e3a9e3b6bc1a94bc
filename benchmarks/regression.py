"""Predictive distributions of a target on tables from the UCI repository: arcsm and its peers, in one run.

python -m benchmarks.regression [TABLE ...]

Tables are read from the folder `uci` of the environment variable ARCSM_DATA. A random tenth of the rows is held out.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from arcsm.data import read_table
from arcsm.data.datasets import data_folder
from arcsm.estimators import ScoreRegressor
from benchmarks.timing import show

TABLES = ("concrete", "energy", "wine")  # the target is the last column
MOST_ROWS = 1_500
PROBABILITIES = np.linspace(0.025, 0.975, 39)  # of the quantiles for the continuous ranked probability score
_INTERVAL = np.searchsorted(PROBABILITIES, np.array([0.05, 0.95]) - 1e-9)  # the quantiles that bound 90 %
_LEAST_MASS = 1e-8

Array = NDArray[np.float64]
#: Quantiles ``(N, Q)`` of held-out rows and, if the method has one, their distribution function.
Predicted = tuple[Array, Callable[[Array], Array] | None]
Method = Callable[[Array, Array, Array], Predicted]


def missing_data(name: str) -> str | None:
    """Return in words that the file of a table is missing; ``None`` if it is not."""
    path = _path(name)
    return None if path.exists() else f"{path} is missing; set ARCSM_DATA to the folder of the data"


def _path(name: str) -> Path:
    return data_folder() / "uci" / f"{name}.csv.gz"


def split(name: str) -> tuple[Array, Array, Array, Array]:
    """Return features and targets of the fitted rows, and those of the held-out rows."""
    if missing := missing_data(name):
        sys.exit(f"regression: {missing}")
    rows = np.random.default_rng(0).permutation(read_table(_path(name)).values.astype(float))[:MOST_ROWS]
    count = len(rows) // 10
    return rows[count:, :-1], rows[count:, -1], rows[:count, :-1], rows[:count, -1]


def ours(x: Array, y: Array, x_test: Array) -> Predicted:
    """Fit a regressor with default settings."""
    predicted = ScoreRegressor(random_state=0).fit(x, y).predict_distribution(x_test)
    return predicted.quantile(PROBABILITIES[:, None]).T, predicted.cdf


def quantile_boosting(x: Array, y: Array, x_test: Array) -> Predicted:
    """Fit trees to each quantile; they have no distribution function."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    models = [HistGradientBoostingRegressor(loss="quantile", quantile=u, random_state=0) for u in PROBABILITIES]
    return np.sort(np.stack([model.fit(x, y).predict(x_test) for model in models], 1), 1), None


def natural_boosting(x: Array, y: Array, x_test: Array) -> Predicted:
    """Fit a normal distribution by NGBoost."""
    from ngboost import NGBRegressor

    predicted = NGBRegressor(verbose=False, random_state=0).fit(x, y).pred_dist(x_test)
    return np.stack([predicted.ppf(u) for u in PROBABILITIES], 1), predicted.cdf


def measures(quantiles: Array, cdf: Callable[[Array], Array] | None, y: Array, step: float) -> dict[str, float | None]:
    """Return the mean negative log density, twice the mean pinball loss and the coverage of the 90 % interval.

    The density is the mean within half a ``step`` of the target, so that probabilities of values count as densities.
    """
    beyond = y[:, None] - quantiles
    pinball = np.maximum(PROBABILITIES * beyond, (PROBABILITIES - 1.0) * beyond)
    low, high = quantiles[:, _INTERVAL].T
    inside = (low <= y) & (y <= high)
    negative_log_likelihood = None
    if cdf is not None:
        mass = cdf(y + 0.5 * step) - cdf(y - 0.5 * step)
        negative_log_likelihood = round(float(-np.log(np.maximum(mass, _LEAST_MASS) / step).mean()), 3)
    return {
        "negative_log_likelihood": negative_log_likelihood,
        "crps": round(2.0 * float(pinball.mean()), 4),
        "coverage_of_90_percent": round(float(inside.mean()), 3),
    }


def main() -> None:
    torch.set_num_threads(1)
    threadpool_limits(1)  # of scikit-learn
    warnings.simplefilter("ignore")  # warnings of the peers about their own settings
    methods: dict[str, Method] = {
        "arcsm": ours,
        "scikit-learn: quantile gradient boosting": quantile_boosting,
    }
    if find_spec("ngboost") is not None:
        methods["NGBoost"] = natural_boosting
    results: dict[str, Any] = {}
    for name in sys.argv[1:] or TABLES:
        x, y, x_test, y_test = split(name)
        step = float(np.median(np.diff(np.unique(y.round(6)))))
        results[name] = {"rows": len(x), "columns": x.shape[1], "step": step, "methods": {}}
        for method, predict in methods.items():
            begun = time.perf_counter()
            predicted = predict(x, y, x_test)
            seconds = round(time.perf_counter() - begun, 1)
            results[name]["methods"][method] = {**measures(*predicted, y_test, step), "seconds": seconds}
    show("regression", {"held_out_fraction": 0.1, "tables": results})


if __name__ == "__main__":
    main()
