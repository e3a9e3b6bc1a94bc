"""The ranges of numeric columns, without gross errors and without a row's own value."""

from __future__ import annotations

import numpy as np
import pytest

from arcsm.estimators.column_types import Grid
from arcsm.estimators.continua import Identity
from arcsm.estimators.value_limits import ValueLimits

KIND = Identity(0.0, 1.0, -1e9, 1e9)


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        (np.r_[np.arange(50.0), 500.0], (0.0, 49.0)),
        (np.r_[np.arange(50.0), 90.0], (0.0, 90.0)),  # no farther than the others are from each other
        (np.r_[np.arange(50.0), 500.0, 510.0], (0.0, 510.0)),  # too many to be errors
        (np.r_[np.arange(250.0), 800.0, 810.0], (0.0, 249.0)),
        (np.array([1.0, 2.0, 900.0]), (-np.inf, np.inf)),
    ],
)
def test_isolated_extremes_are_errors(values: np.ndarray, limits: tuple[float, float]) -> None:
    found = ValueLimits.of_training_rows(np.random.default_rng(0).permutation(values)[:, None], [KIND])
    assert (found.low[0], found.high[0]) == limits


def test_a_row_does_not_set_its_own_limits() -> None:
    values = np.r_[np.arange(20.0), 19.0][:, None]
    limits = ValueLimits.of_training_rows(values, [Grid(1.0, 0.0, 20, whole=True)])
    low, high = limits.of_other_rows(np.array([[0.0], [5.0], [19.0], [30.0]]))
    assert low[:, 0].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert high[:, 0].tolist() == [19.0] * 4  # which two rows have


def test_quantiles_of_a_discrete_column_move_to_numbers_that_occur() -> None:
    values = np.array([[0.0, 0.1], [3.0, 0.2], [3.0, 0.3], [10.0, 0.4], [np.nan, np.nan]])
    limits = ValueLimits.of_training_rows(values, [Grid(1.0, 0.0, 11, whole=True), KIND])
    quantiles = np.array([-2.0, 1.4, 1.6, 4.0, 9.0, 30.0])
    assert limits.nearest_levels(0, quantiles).tolist() == [0.0, 0.0, 3.0, 3.0, 10.0, 10.0]
    assert limits.nearest_levels(1, quantiles) is quantiles
