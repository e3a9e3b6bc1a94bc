"""Selection of outliers from p-values, with a bound on the share of false ones."""

import numpy as np

from arcsm.errors import warn
from arcsm.estimators.column_types import Array


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
    check_fdr(fdr, calibration_rows)
    smallest, count = 1.0 / (1.0 + calibration_rows), len(p_values)
    fewest = int(np.ceil(smallest * count / fdr * (1.0 - 1e-12)))
    if fewest > max(1, 0.1 * count):
        warn(
            f"with {calibration_rows} calibration rows, outliers are found only if there are at least {fewest} among "
            f"the {count} rows; fit to more rows, or calibrate with more"
        )
    ordered = np.sort(p_values)
    is_low = ordered <= fdr * np.arange(1, count + 1) / count * (1.0 + 1e-12)  # which rounding must not exclude
    return float(ordered[is_low].max(initial=0.0))


def check_fdr(fdr: float, calibration_rows: int) -> None:
    """Check that some number of outliers could be selected."""
    if not 0.0 < fdr < 1.0:
        raise ValueError(f"fdr: expected a number between 0 and 1, got {fdr}")
    smallest = 1.0 / (1.0 + calibration_rows)
    if smallest > fdr:
        raise ValueError(
            f"fdr: expected at least {smallest:.3g} (of {calibration_rows} calibration rows), got {fdr:g}; fit to more "
            "rows, or calibrate with more"
        )
