"""Peers that predict the distribution of a number: gradient-boosted trees and natural gradient boosting.

References:
    NGBoost: Natural Gradient Boosting for Probabilistic Prediction (Duan and others, 2020)
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn.ensemble import HistGradientBoostingRegressor

from arcsm.experiments.comparisons import Array
from arcsm.experiments.outside import run_outside

#: Those of the predicted quantiles.
PROBABILITIES = np.linspace(0.025, 0.975, 39)


class Predicted(NamedTuple):
    """Predictions for ``N`` rows."""

    mean: Array  # (N,)
    quantiles: Array  # (N, Q), of `PROBABILITIES`, ascending
    cdf: Callable[[Array], Array] | None = None  # of one value for each row, if the method has a distribution function
    versions: str | None = None  # of libraries outside our requirements


Regressor = Callable[[Array, Array, Array, int], Predicted]  #: from rows, targets, rows to predict and a seed


def predict_by_quantile_boosting(x: Array, y: Array, rows: Array, seed: int) -> Predicted:
    """Boost trees for the mean and for each quantile; sorted, as they may cross."""
    mean = HistGradientBoostingRegressor(random_state=seed).fit(x, y).predict(rows)
    models = [HistGradientBoostingRegressor(loss="quantile", quantile=u, random_state=seed) for u in PROBABILITIES]
    return Predicted(mean, np.sort(np.stack([model.fit(x, y).predict(rows) for model in models], 1), 1))


def predict_by_natural_boosting(x: Array, y: Array, rows: Array, seed: int) -> Predicted:
    """Boost the mean and the scale of a normal distribution, in an environment of its own."""
    found = run_outside("NGBoost", {"x": x, "y": y, "rows": rows}, {"seed": seed})
    normal = stats.norm(found["mean"], found["scale"])
    quantiles = normal.ppf(PROBABILITIES[:, None]).T
    return Predicted(found["mean"], quantiles, normal.cdf, str(found["versions"]))


PEERS: Mapping[str, Regressor] = {
    "quantile boosting": predict_by_quantile_boosting,
    "NGBoost": predict_by_natural_boosting,
}
