"""Selection of outliers from p-values, with a bound on the share of false ones."""

import numpy as np
from numpy.typing import NDArray

from arcsm.errors import warn
from arcsm.estimators.column_types import Array

_AT_A_TIME = 1 << 22  # pairs of rows
_MOST_WEIGHT = 1e100  # so that sums are finite


def selection_threshold(p_values: Array, fdr: float, calibration_rows: int) -> float:
    """Return the p-value up to which rows are selected by Benjamini and Hochberg; 0 if none is.

    Among ``N`` p-values the threshold is the largest that is at most :math:`k / N` times ``fdr``, where :math:`k`
    p-values are as low. The expected share of normal rows among the selected ones is then at most ``fdr``, because
    p-values from one set of calibration rows depend positively on each other (Bates et al.).

    Arguments:
        p_values: The p-values of the rows ``(N,)``.
        fdr: The bound, the false discovery rate.
        calibration_rows: How many rows the p-values were computed from; none is below one in so many and one.

    Raises:
        ValueError: If ``fdr`` is not between 0 and 1, or so low that no number of outliers could be selected.

    Warns:
        UserWarning: If a few outliers alone could not be selected.

    References:
        Controlling the False Discovery Rate (Benjamini and Hochberg, 1995)
        Testing for Outliers with Conformal p-values (Bates, Candes, Lei, Romano and Sesia, 2023),
        https://arxiv.org/abs/2104.08279
    """
    count = len(p_values)
    check_fdr(fdr, calibration_rows)
    _warn_if_few_are_not_found(1.0 / (1.0 + calibration_rows), fdr, count, calibration_rows)
    ordered = np.sort(p_values)
    is_low = ordered <= fdr * np.arange(1, count + 1) / count * (1.0 + 1e-12)  # which rounding must not exclude
    return float(ordered[is_low].max(initial=0.0))


def weighted_p_values(scores: Array, weights: Array | float, calibrating: Array, their_weights: Array) -> Array:
    """Return p-values of rows whose distribution differs from that of the calibrating ones by weights, ``(N,)``.

    .. math:: p = \\frac{\\sum_i w_i 1[s_i \\le s] + w}{\\sum_i w_i + w}

    Arguments:
        scores: Of the rows, ``(N,)``: low ones are outlying.
        weights: Ratios of the densities of the two distributions at the rows, up to a factor, ``(N,)``.
        calibrating: Scores of the calibrating rows in ascending order, ``(C,)``.
        their_weights: The same ratios at these, ``(C,)``.

    References:
        Conformal Prediction Under Covariate Shift (Tibshirani, Barber, Candes and Ramdas, 2019)
    """
    as_low, total = _weights_as_low(scores, calibrating, their_weights)
    return np.asarray((as_low + weights) / (total + weights), dtype=np.float64)


def weighted_selection(
    scores: Array, weights: Array, calibrating: Array, their_weights: Array, fdr: float
) -> NDArray[np.bool_]:
    """Return which rows are selected by their :func:`weighted_p_values` so that the bound holds, ``(N,)``.

    Such p-values may depend on each other in ways that Benjamini and Hochberg's procedure does not allow. Weighted
    conformalised selection therefore repeats it for each row: with the p-values that the others have if the row counts
    among the calibrating ones, and a p-value of 0 for the row itself. The number that is then selected is the row's
    own bound, and rows whose bounds disagree with the number selected in the end are pruned. With equal weights, the
    selection is that of :func:`selection_threshold`. The time is quadratic in the number of rows whose p-values are at
    most ``fdr``.

    Raises:
        ValueError: If ``fdr`` is not between 0 and 1, or so low that no number of outliers could be selected; or if all
            weights are zero.

    Warns:
        UserWarning: If a few outliers alone could not be selected.

    References:
        Model-free selective inference under covariate shift via weighted conformal p-values (Jin and Candes, 2023),
        Algorithm 1 with deterministic pruning, https://arxiv.org/abs/2307.09291
    """
    count = len(scores)
    if count and not weights.any():
        raise ValueError("weights: expected some that are positive")
    p_values = weighted_p_values(scores, weights, calibrating, their_weights)
    order = np.argsort(scores, kind="stable")
    as_low, total = _weights_as_low(scores[order], calibrating, their_weights)
    smallest = float((weights / (total + weights)).min()) if count else 0.0
    check_fdr(fdr, len(calibrating), smallest)
    _warn_if_few_are_not_found(smallest, fdr, count, len(calibrating))
    candidates = np.flatnonzero(p_values <= fdr * (1.0 + 1e-12))
    order = order[as_low <= fdr * (total + weights.max(initial=0.0)) * (1.0 + 1e-12)]  # p-values of others are higher
    as_low, places = as_low[: len(order)], np.arange(len(order))
    limits = fdr * (places + 1) / count * (1.0 + 1e-12)  # which rounding must not exclude
    bounds = np.zeros(count, dtype=int)
    for start in range(0, len(candidates), size := max(1, _AT_A_TIME // max(len(order), 1))):
        rows = candidates[start : start + size, None]
        with_row = as_low + weights[rows] * (scores[rows] <= scores[order])
        with_row[order == rows] = 0.0
        p_of_others = np.sort(with_row / (total + weights[rows]), 1, kind="stable")  # fast, as only one is not in order
        bounds[rows[:, 0]] = ((p_of_others <= limits) * (places + 1)).max(1)
    selected = (bounds > 0) & (p_values <= fdr * bounds / count * (1.0 + 1e-12))
    numbers = np.sort(bounds[selected])  # the largest r so that at least r rows have a bound of at most r
    fitting = [r for r in np.unique(numbers) if np.searchsorted(numbers, r, side="right") >= r]
    return selected & (bounds <= max(fitting, default=0))


def _weights_as_low(scores: Array, calibrating: Array, their_weights: Array) -> tuple[Array, float]:
    """Return the weights of the calibrating rows with as low a score as each row, ``(N,)``, and those of all."""
    sums = np.concatenate([[0.0], np.cumsum(their_weights)])
    return sums[np.searchsorted(calibrating, scores, side="right")], float(sums[-1])


def check_weights(name: str, weights: object, rows: int) -> Array:
    """Return weights of rows as numbers ``(N,)``, after checks."""
    try:
        found = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.shape != (rows,) or not 0.0 <= found.min(initial=0.0) <= found.max(initial=0.0) <= _MOST_WEIGHT:
        raise ValueError(f"{name}: expected {rows} numbers from 0 to {_MOST_WEIGHT:g}, one for each row")
    return found


def _warn_if_few_are_not_found(smallest: float, fdr: float, count: int, calibration_rows: int) -> None:
    """Warn if a few outliers alone could not be selected among ``count`` rows, by the smallest possible p-value."""
    fewest = int(np.ceil(smallest * count / fdr * (1.0 - 1e-12)))
    if fewest > max(1, 0.1 * count):
        warn(
            f"with {calibration_rows} calibration rows, outliers are found only if there are at least {fewest} among "
            f"the {count} rows; fit to more rows, or calibrate with more"
        )


def check_fdr(fdr: float, calibration_rows: int, smallest: float | None = None) -> None:
    """Check that some number of outliers could be selected.

    ``smallest`` is the smallest possible p-value; by default that of calibration rows without weights.
    """
    if not 0.0 < fdr < 1.0:
        raise ValueError(f"fdr: expected a number between 0 and 1, got {fdr}")
    smallest = 1.0 / (1.0 + calibration_rows) if smallest is None else smallest
    if smallest > fdr * (1.0 + 1e-12):
        raise ValueError(
            f"fdr: expected at least {smallest:.3g} (of {calibration_rows} calibration rows), got {fdr:g}; fit to more "
            "rows, or calibrate with more"
        )
