"""The outlier detector: scores, contributions, thresholds and expected intervals."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

from arcsm.estimators import ScoreOutlierDetector, outliers, reasons
from small_tables import QUICK


def tumours() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return benign tumours to fit, other benign ones and malign ones, with a third of their columns."""
    data = load_breast_cancer(as_frame=True)
    table = data.data.iloc[:, 20:]
    benign = table[data.target == 1]
    return benign[:250], benign[250:], table[data.target == 0]


@pytest.fixture(scope="module")
def detector() -> ScoreOutlierDetector:
    return ScoreOutlierDetector(max_steps=100, n_estimators=1, random_state=0).fit(tumours()[0])


def test_tumours_score_as_outliers(detector: ScoreOutlierDetector) -> None:
    _, benign, malign = tumours()
    rows, outlying = pd.concat([benign, malign]), np.repeat([0, 1], [len(benign), len(malign)])
    assert roc_auc_score(outlying, -detector.score_samples(rows)) > 0.93
    p = detector.p_values(rows)
    assert p.min() >= 1.0 / (1.0 + len(detector.held_out_scores_))
    assert np.median(p[outlying == 1]) < 0.05 < np.median(p[outlying == 0])


def test_contributions_sum_to_the_score_and_show_the_changed_column(detector: ScoreOutlierDetector) -> None:
    row = tumours()[1].head(3).copy()
    np.testing.assert_allclose(detector.explain(row).sum(axis=1), detector.score_samples(row), rtol=1e-12)
    row.loc[row.index[1], "worst smoothness"] *= 5.0
    top = detector.top_contributions(row, columns=2)
    assert len(top) == 6
    changed = top[top["row"] == 1]
    assert "worst smoothness" in changed["column"].tolist()
    assert changed["contribution"].min() < -5.0
    with pytest.raises(ValueError, match="top_contributions: expected whole numbers from 1"):
        detector.top_contributions(row, 0)


def test_every_score_is_lower_for_outliers(detector: ScoreOutlierDetector) -> None:
    _, benign, malign = tumours()
    rows = pd.concat([benign, malign[:60]])
    scores = detector.all_scores(rows)
    levels = detector.config_.noise_levels
    assert scores.shape == (167, 2 * levels + 1)
    np.testing.assert_allclose(scores.iloc[:, levels - 1], detector.score_samples(rows), rtol=1e-9)
    for name, score in scores.items():
        assert roc_auc_score(np.r_[np.zeros(107), np.ones(60)], -score) > 0.8, name
    np.testing.assert_allclose(detector.all_scores(rows[7:9]), scores[7:9], rtol=1e-7)


def test_the_contamination_moves_the_threshold(detector: ScoreOutlierDetector) -> None:
    fitted, *others = tumours()
    for share in (0.02, 0.2):
        found = (copy.deepcopy(detector).set_contamination(share).predict(fitted) == -1).mean()
        assert found == pytest.approx(share, abs=0.01)
    rows = pd.concat(others)
    assert ((detector.predict(rows) == -1) == (detector.p_values(rows) <= 0.1)).all()
    with pytest.raises(ValueError, match="contamination"):
        detector.set_contamination(0.9)


def test_missing_values_contribute_the_median() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    x[:, 2] = x[:, 0] + 0.1 * x[:, 2]
    x[rng.random(x.shape) < 0.2] = np.nan
    detector = ScoreOutlierDetector(max_steps=150, n_estimators=1, random_state=0).fit(x)
    contributions = detector.explain(x)
    for column in range(3):  # in all units
        missing = np.isnan(x[:, column])
        median = np.median(contributions[~missing, column])
        np.testing.assert_allclose(contributions[missing, column], median, rtol=1e-9)
    usual, broken = detector.score_samples([[1.0, np.nan, 1.0], [1.0, np.nan, -2.0]])
    assert usual > broken + 3.0


@pytest.mark.parametrize("held_out", [5, 20])
def test_a_tenth_of_new_rows_is_flagged_at_most_unless_few_are_held_out(held_out: int) -> None:
    detector = ScoreOutlierDetector()
    detector.held_out_scores_, detector.held_out_weights_ = np.arange(float(held_out)), np.ones(held_out)
    places = np.arange(held_out + 1) - 0.5  # of a new score among them, all equally likely
    expected = pytest.warns(UserWarning, match="of normal rows are flagged") if held_out < 9 else nullcontext()
    with expected:
        flagged = (places < detector._threshold("auto")).mean()
    assert flagged == max(1, (held_out + 1) // 10) / (held_out + 1)


@pytest.mark.slow
def test_expected_intervals_of_closely_related_columns_have_their_coverage_and_width() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 2))
    x[:, 1] = 2.0 * x[:, 0] + 0.3 * x[:, 1]  # closer than the noise of the model
    detector = ScoreOutlierDetector(max_steps=400, validation_fraction=0.3, random_state=0).fit(x[:1000])
    for share in (0.5, 0.9):
        low, high = detector.expected(x[1000:], share)
        inside = (low < x[1000:]) & (x[1000:] < high)
        np.testing.assert_allclose(inside.mean(0), share, atol=3.0 * math.sqrt(share * (1.0 - share) / 300))
    assert np.median(high - low, 0)[1] == pytest.approx(2.0 * 0.3 * stats.norm.ppf(0.95), rel=0.4)
    row = pd.DataFrame([[0.0, 1.5]])
    found = reasons.conditionals_by_place(detector, row, np.array([[1]]))
    [reason] = reasons.reasons(detector, row, np.array([[0.0, -9.0]]), found)
    assert reason.startswith("1: expected -0.")  # five standard deviations from 0


def test_values_are_explained_given_all_others() -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(size=(700, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]]), np.full(700, 2.0)])
    detector = ScoreOutlierDetector(max_steps=150, random_state=0).fit(x[:400])
    found = detector.explain(x[400:], given="others")
    truth = [stats.norm.logpdf(x[400:, d], 0.8 * x[400:, 1 - d], 0.6) for d in (0, 1)]
    kinds = [detector.columns_.kinds[d] for d in (0, 1)]
    slopes = [kind.log_slope(kind.encode(x[400:, d])) for d, kind in enumerate(kinds)]  # the score leaves them out
    np.testing.assert_allclose(found[:, :2].mean(0), np.mean(np.subtract(truth, slopes), 1), atol=0.1)
    assert np.isnan(detector.explain([[np.nan, 0.0, 2.0]], given="others"))[0].tolist() == [True, False, False]
    assert detector.explain([[0.0, 0.0, 1.0]], given="others")[0, 2] < -5.0  # the constant column
    with pytest.raises(ValueError, match="given: expected before or others, got 'all'"):
        detector.explain(x[:2], given="all")


def test_scores_do_not_depend_on_units() -> None:
    random = np.random.default_rng(0)
    rows = np.stack([random.poisson(4.0, 150), random.normal(size=150)], 1)
    scaled = rows * [10.0, 1000.0]
    found = []
    for table in (rows, scaled):
        detector = ScoreOutlierDetector(n_estimators=1, max_steps=20, random_state=0).fit(table)
        found.append(detector.explain(table))
    np.testing.assert_allclose(found[0], found[1], rtol=0.0, atol=1e-3)


def test_of_many_fitted_rows_some_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outliers, "_MAX_REFERENCE_ROWS", 100)
    rows = np.random.default_rng(0).normal(size=(350, 3))
    rows[3:, 2] = np.nan  # known in rows that are not among the scored ones
    rows[:3, 2] = [0.0, 1.0, 2.0]
    detector = ScoreOutlierDetector(contamination=0.2, **QUICK).fit(rows)
    assert detector.n_fitted_rows_ == 350
    scores = detector.score_samples(rows)
    some = outliers._reference_rows(~np.isnan(rows))
    assert 100 <= len(some) <= 103
    np.testing.assert_allclose(detector.fitted_scores_, scores[some], rtol=1e-9)
    assert detector.fitted_excess_.shape == (len(some), 3)
    np.testing.assert_allclose(detector.held_out_scores_, np.sort(scores[detector.held_out_rows_]), rtol=1e-9)
    assert (detector.predict(rows[some]) == -1).mean() == pytest.approx(0.2, abs=0.02)
    assert np.isfinite(detector.median_contributions_).all()
