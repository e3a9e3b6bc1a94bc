"""The maps of the targets of a regression: nonlinear where that makes their conditionals more likely."""

from dataclasses import replace

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import KFold, cross_val_predict

from arcsm.estimators.column_inference import MIN_GAIN, detect_grid, infer_numbers, listed
from arcsm.estimators.column_types import Array, Column
from arcsm.estimators.continua import Continuous, Identity
from arcsm.estimators.encoder import Columns

_MAX_ROWS = 2_000  # that are compared
_FOLDS, _TREES = 3, 50
_LEAST_ERROR = 1e-3  # of the mean absolute error, whose logarithm is taken


def with_target_maps(columns: Columns, rows: Array, targets: Array) -> Columns:
    """Return the columns of a table with the final types of its targets.

    Values that lie on no grid and nearly all repeat have a level each. Others have a linear map if a nonlinear one does
    not make them more likely.

    The map of a column makes its values nearly normal. Those of a target need not be: features may explain its
    skewness. A map that is steep for most rows then blurs the conditionals of those where it is flat. The test is that
    of Box and Cox (1964) with trees in place of a linear model, and with widths that depend on the features.

    Arguments:
        columns: The columns. The targets are the last ones.
        rows: The numbers of training rows, ``(N, D)``.
        targets: The values of the targets, ``(N, T)``.
    """
    kinds = list(columns.kinds)
    first = len(kinds) - targets.shape[1]
    for d in range(first, len(kinds)):
        values = targets[:, d - first]
        repeated = listed(values) if isinstance(kinds[d], Continuous) and detect_grid(values) is None else None
        if repeated is not None:
            kinds[d] = repeated
        elif _is_nonlinear(kinds[d]) and _gain(kinds[d], rows[:, :first], values) <= MIN_GAIN:
            kinds[d] = infer_numbers(values, linear=True)
    return replace(columns, kinds=tuple(kinds))


def _is_nonlinear(kind: Column) -> bool:
    return isinstance(kind, Continuous) and not isinstance(kind, Identity)


def _gain(kind: Column, features: Array, values: Array) -> float:
    """Return by how much a map makes values given features more likely than the linear one does, in nats per value."""
    numbers = kind.encode(values)
    chosen = np.flatnonzero(kind.spike_of(numbers) == 0)
    chosen = np.random.default_rng(0).permutation(chosen)[:_MAX_ROWS]
    features = features[chosen][:, [len(np.unique(column)) > 1 for column in features[chosen].T]]
    if len(chosen) < _FOLDS or not features.shape[1]:
        return np.inf
    slopes = kind.log_slope(numbers[chosen])
    return float(slopes.mean()) + _log_likelihood(features, numbers[chosen]) - _log_likelihood(features, values[chosen])


def _log_likelihood(features: Array, numbers: Array) -> float:
    """Return the mean log likelihood of Laplace distributions whose centres and widths trees predict, out of fold."""
    errors = np.abs(numbers - _predictions(features, numbers))
    if not errors.any():
        return np.inf
    log_widths = _predictions(features, np.log(errors + _LEAST_ERROR * errors.mean()))
    scale = (errors * np.exp(-log_widths)).mean()
    return float(-np.log(2.0 * scale) - log_widths.mean() - 1.0)


def _predictions(features: Array, numbers: Array) -> Array:
    """Return predictions of numbers from features by trees that have not seen them."""
    trees = HistGradientBoostingRegressor(max_iter=_TREES, early_stopping=False, random_state=0)
    found: Array = cross_val_predict(trees, features, numbers, cv=KFold(_FOLDS, shuffle=True, random_state=0))
    return found
