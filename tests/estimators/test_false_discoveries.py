"""Outliers selected with a bound on the share of false ones."""

from __future__ import annotations

import numpy as np
import pytest

from arcsm.estimators import ScoreOutlierDetector
from arcsm.estimators.false_discoveries import selection_threshold
from small_tables import QUICK


def test_the_threshold_is_that_of_benjamini_and_hochberg() -> None:
    p = np.array([0.9, 0.01, 0.04, 0.5, 0.03])
    bounds = 0.1 * np.arange(1, 6) / 5  # of the sorted ones: 0.02, 0.04, 0.06, 0.08, 0.1
    naive = max(value for value, bound in zip(np.sort(p), bounds, strict=True) if value <= bound)
    assert selection_threshold(p, 0.1, 999) == naive == 0.04
    assert selection_threshold(p, 0.01, 999) == 0.0
    assert selection_threshold(np.array([0.05, 0.05]), 0.05, 19) == 0.05


def test_a_bound_that_cannot_be_reached_is_rejected() -> None:
    p = np.full(100, 0.1)
    with pytest.raises(
        ValueError, match=r"fdr: expected at least 0\.1 \(of 9 calibration rows\), got 0\.05; fit to more"
    ):
        selection_threshold(p, 0.05, 9)
    for fdr in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="fdr: expected a number between 0 and 1"):
            selection_threshold(p, fdr, 99)
    with pytest.warns(UserWarning, match="with 19 calibration rows, outliers are found only if there are at least 50"):
        selection_threshold(p, 0.1, 19)


def rows_of(count: int, random: np.random.Generator) -> np.ndarray:
    """Draw normal rows of a distribution that is none of the model's."""
    x = random.normal(size=(count, 3))
    return np.tanh(x @ np.array([[1.0, 0.7, 0.0], [0.0, 0.6, 0.5], [0.0, 0.0, 0.8]])) + 0.1 * x[:, ::-1]


def test_selected_rows_are_normal_no_more_often_than_asked_and_p_values_are_exact() -> None:
    random, fdr = np.random.default_rng(0), 0.2
    detector = ScoreOutlierDetector(**QUICK).fit(rows_of(200, random))
    draws, normal, shift = 200, 90, np.array([2.5, -2.5, 2.5])
    false_shares, found, small = np.zeros(draws), np.zeros(draws), np.zeros(draws)
    for draw in range(draws):
        detector.calibrate(rows_of(79, random))
        tested = np.concatenate([rows_of(normal, random), rows_of(10, random) + shift])
        selected, p = detector.select(tested, fdr), detector.p_values(tested)
        false_shares[draw] = selected[:normal].sum() / max(1, selected.sum())
        found[draw], small[draw] = selected[normal:].mean(), (p[:normal] <= 0.1).mean()
    error = false_shares.std() / np.sqrt(draws)
    expected = fdr * normal / (normal + 10)  # of the procedure, exactly, where 80 p-values are equally likely
    assert abs(false_shares.mean() - expected) < 4.0 * error
    assert found.mean() > 0.9
    assert abs(small.mean() - 0.1) < 4.0 * small.std() / np.sqrt(draws)


def test_calibration_moves_the_threshold_of_the_default() -> None:
    random = np.random.default_rng(0)
    detector = ScoreOutlierDetector(**QUICK).fit(rows_of(200, random))
    new = rows_of(500, random)
    before = detector.offset_
    assert detector.calibrate(new) is detector
    assert detector.offset_ != before
    assert np.mean(detector.predict(new) < 0) == pytest.approx(0.1, abs=0.005)
    fixed = ScoreOutlierDetector(0.2, **QUICK).fit(rows_of(200, random))
    before = fixed.offset_
    assert fixed.calibrate(new).offset_ == before


def test_p_values_of_training_rows_are_a_warning() -> None:
    detector = ScoreOutlierDetector(**QUICK).fit(rows_of(7, np.random.default_rng(0)))
    with pytest.warns(UserWarning, match="all rows were fitted, so p-values are too small"):
        detector.select(rows_of(7, np.random.default_rng(1)), fdr=0.5)
