"""Outliers selected with a bound on the share of false ones."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest

from arcsm.estimators import ScoreOutlierDetector, false_discoveries
from arcsm.estimators.false_discoveries import selection_threshold, weighted_p_values, weighted_selection
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
    x = random.normal(size=(count, 2))
    return np.tanh(x @ np.array([[1.0, 0.7], [0.0, 0.6]])) + 0.1 * x[:, ::-1]


@pytest.fixture(scope="module")
def fitted() -> ScoreOutlierDetector:
    return ScoreOutlierDetector(**QUICK).fit(rows_of(150, np.random.default_rng(0)))


@pytest.fixture
def detector(fitted: ScoreOutlierDetector) -> ScoreOutlierDetector:
    """Return a copy of a fitted detector, which a test may calibrate."""
    return copy.deepcopy(fitted)


def test_selected_rows_are_normal_no_more_often_than_asked_and_p_values_are_exact() -> None:
    random, fdr = np.random.default_rng(0), 0.2
    draws, normal, shift = 200, 70, np.repeat([0.0, 5.0], [70, 10])
    false_shares, found, small = np.zeros(draws), np.zeros(draws), np.zeros(draws)
    for draw in range(draws):
        p = weighted_p_values(random.normal(size=80) - shift, 1.0, np.sort(random.normal(size=399)), np.ones(399))
        selected = p <= selection_threshold(p, fdr, 399)
        false_shares[draw] = selected[:normal].sum() / max(1, selected.sum())
        found[draw], small[draw] = selected[normal:].mean(), (p[:normal] <= 0.1).mean()
    error = false_shares.std() / np.sqrt(draws)
    expected = fdr * normal / (normal + 10)  # exactly, because fdr times 400 is a multiple of 80
    assert abs(false_shares.mean() - expected) < 4.0 * error
    assert found.mean() > 0.9
    assert abs(small.mean() - 0.1) < 4.0 * small.std() / np.sqrt(draws)


def test_calibration_moves_the_threshold_of_the_default(detector: ScoreOutlierDetector) -> None:
    new = rows_of(500, np.random.default_rng(1))
    before = detector.offset_
    assert detector.calibrate(new) is detector
    assert detector.offset_ != before
    assert np.mean(detector.predict(new) < 0) == pytest.approx(0.1, abs=0.005)
    fixed = detector.set_contamination(0.2)
    before = fixed.offset_
    assert fixed.calibrate(new[:100]).offset_ == before


def test_p_values_of_training_rows_are_a_warning() -> None:
    detector = ScoreOutlierDetector(**QUICK).fit(rows_of(7, np.random.default_rng(0)))
    with pytest.warns(UserWarning, match="all rows were fitted, so p-values are too small"):
        detector.select(rows_of(7, np.random.default_rng(1)), fdr=0.5)


def shifted(seed: int, outliers: int = 40) -> tuple[np.ndarray, ...]:
    """Return scores and weights of 160 normal rows and outliers after a shift, and of 1,000 calibrating rows before it.

    Scores fall with a feature, which is larger after the shift. Outliers are far in another one.
    """
    random = np.random.default_rng(seed)
    before, after = random.normal(size=1000), random.normal(0.7, 1.0, size=160 + outliers)
    calibrating = -before - 0.3 * random.normal(size=1000)
    scores = -after - 0.3 * random.normal(size=160 + outliers) - np.repeat([0.0, 5.0], [160, outliers])
    order = np.argsort(calibrating)
    return scores, np.exp(0.7 * after), calibrating[order], np.exp(0.7 * before)[order]


@pytest.mark.parametrize("weight", [0.3, 50.0])
def test_equal_weights_select_at_the_boundary_what_none_do(weight: float) -> None:
    for count in range(5, 40, 4):
        calibrating, scores = np.arange(float(count)), np.full(4, 1.5)
        for k in range(count):
            fdr = (k + 1) / (count + 1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                p = weighted_p_values(scores, 1.0, calibrating, np.ones(count))
                usual = p <= selection_threshold(p, fdr, count)
                theirs = np.full(count, weight)
                weighted = weighted_selection(scores, np.full(4, weight), calibrating, theirs, fdr)
            assert np.array_equal(weighted, usual)


def test_a_bound_that_weighted_rows_cannot_reach_is_rejected() -> None:
    scores, calibrating, ones = np.full(5, -9.0), np.arange(100.0), np.ones(100)
    with pytest.raises(ValueError, match=r"fdr: expected at least 0\.5 \(of 100 calibration rows\), got 0\.1"):
        weighted_selection(scores, np.full(5, 100.0), calibrating, ones, 0.1)
    with pytest.raises(ValueError, match="weights: expected some that are positive"):
        weighted_selection(scores, np.zeros(5), calibrating, ones, 0.1)
    assert weighted_selection(scores, np.array([0.0, 0.0, 1.0, 1.0, 1.0]), calibrating, ones, 0.1).all()
    many = np.concatenate([scores, np.full(495, 200.0)])
    with pytest.warns(UserWarning, match="with 100 calibration rows, outliers are found only if there are at least 82"):
        weighted_selection(many, np.full(500, 5.0 / 3.0), calibrating, ones, 0.1)


def test_the_scale_of_weights_does_not_matter() -> None:
    scores, weights, calibrating, theirs = shifted(0)
    scaled = weighted_selection(scores, 1e6 * weights, calibrating, 1e6 * theirs, 0.2)
    assert np.array_equal(scaled, weighted_selection(scores, weights, calibrating, theirs, 0.2))


def test_the_bound_holds_after_a_shift() -> None:
    """In 200 draws; without weights most of the selected rows are normal."""
    fdr, realised, unweighted, found = 0.2, [], [], []
    for seed in range(200):
        scores, weights, calibrating, theirs = shifted(seed)
        chosen = weighted_selection(scores, weights, calibrating, theirs, fdr)
        realised.append(chosen[:160].sum() / max(1, chosen.sum()))
        found.append(chosen[160:].mean())
        p = weighted_p_values(scores, 1.0, calibrating, np.ones(1000))
        usual = p <= selection_threshold(p, fdr, 1000)
        unweighted.append(usual[:160].sum() / max(1, usual.sum()))
    error = np.std(realised) / np.sqrt(200)
    assert np.mean(realised) <= fdr + 2.0 * error
    assert np.mean(unweighted) > 1.5 * fdr
    assert np.mean(found) > 0.3


def test_many_rows_are_selected_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, weights, calibrating, theirs = shifted(1)
    whole = weighted_selection(scores, weights, calibrating, theirs, 0.2)
    monkeypatch.setattr(false_discoveries, "_AT_A_TIME", 500)
    assert np.array_equal(weighted_selection(scores, weights, calibrating, theirs, 0.2), whole)
    assert not len(weighted_selection(scores[:0], weights[:0], calibrating, theirs, 0.2))


def test_a_detector_takes_weights(detector: ScoreOutlierDetector) -> None:
    random = np.random.default_rng(0)
    rows, new = random.normal(size=(100, 2)), random.normal(size=(30, 2)) + 1.0
    usual = detector.calibrate(rows).p_values(new)
    weights = np.exp(rows[:, 0])
    weighted = detector.calibrate(rows, weights)
    scores = detector.score_samples(rows)
    own = np.exp(new[:, 0])
    expected = [
        (weights[scores <= score].sum() + mine) / (weights.sum() + mine)
        for score, mine in zip(detector.score_samples(new), own, strict=True)
    ]
    np.testing.assert_allclose(weighted.p_values(new, own), expected, rtol=1e-12)
    assert weighted.select(new, 0.9, own).shape == (30,)
    for call in (weighted.p_values, weighted.select):
        with pytest.raises(ValueError, match="weights: expected those of the rows"):
            call(new)
        with pytest.raises(ValueError, match="weights: expected 30 numbers"):
            call(new, weights=own[1:])
    for wrong in (-weights, weights[1:], np.full(100, np.nan), np.zeros(100), np.full(100, 1e308), ["a"] * 100):
        with pytest.raises(ValueError, match="weights: expected"):
            detector.calibrate(rows, wrong)
    np.testing.assert_array_equal(detector.calibrate(rows).p_values(new), usual)
