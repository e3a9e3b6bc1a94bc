"""Estimators for tables: scikit-learn's own checks, tables of every kind, gaps, explanations."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from arcsm.anomaly import Combination
from arcsm.cli import application, tables
from arcsm.data import frame_parts, frame_writer, read_frame, write_frame
from arcsm.estimators import ScoreDensity, ScoreOutlierDetector
from arcsm.estimators.column_types import Asinh, Categories, Column, Constant, Grid, Identity, Power, column_of
from arcsm.estimators.encoder import Columns, describe
from arcsm.estimators.ensemble import Plan
from arcsm.reports.detection import DetectionResult, verdicts, write_detection_report

QUICK: dict[str, Any] = {"max_steps": 20, "n_estimators": 1, "hidden_features": (16,), "random_state": 0}


@parametrize_with_checks([ScoreDensity(**QUICK), ScoreOutlierDetector(**QUICK)])
def test_scikit_learn_accepts_them(estimator: Any, check: Any) -> None:
    check(estimator)


# Columns ------------------------------------------------------------------------------------------------------------


def drawn(name: str, count: int = 500) -> Any:
    rng = np.random.default_rng(0)
    return {
        "normal": rng.normal(5.0, 2.0, count),
        "heavy": stats.t(1.5).rvs(count, random_state=rng) * 3.0 + 1.0,
        "skewed": np.exp(rng.normal(size=count)),
        "bounded": rng.beta(0.8, 3.0, count),
        "integers": rng.poisson(4.0, count).astype(float),
        "halves": rng.integers(0, 20, count) * 0.5 - 3.0,
        "binary": (rng.random(count) < 0.2).astype(float),
        "tenths": np.round(rng.normal(size=count), 1),
        "constant": np.full(count, 7.5),
        "huge": rng.normal(3e8, 1e7, count),
        "tiny": rng.normal(2e-9, 1e-10, count),
    }[name]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("normal", Identity),
        ("heavy", Asinh),
        ("skewed", Power),
        ("bounded", Power),
        ("integers", Grid),
        ("halves", Grid),
        ("binary", Grid),
        ("tenths", Grid),
        ("constant", Constant),
        ("huge", Identity),
        ("tiny", Identity),
    ],
)
def test_a_column_is_taken_for_what_it_is_and_comes_back(name: str, kind: type[Column]) -> None:
    values = drawn(name)
    column = column_of(values, categorical=False)
    assert isinstance(column, kind)
    np.testing.assert_allclose(np.asarray(column.decode(column.encode(values)), float), values, rtol=1e-7, atol=1e-20)
    gaps = values.copy()
    gaps[3] = np.nan
    assert np.isnan(column.encode(gaps)).nonzero()[0].tolist() == [3]


@pytest.mark.parametrize(
    "column",
    [
        Identity(1.0, 3.0, -9.0, 9.0),
        Asinh(1.0, 3.0, -9.0, 9.0),
        *(Power(1.0, 1.5, -9.0, 9.0, exponent) for exponent in (0.0, 0.3, 1.0, 1.7, 2.0)),
    ],
)
def test_maps_come_back_and_their_slope_is_theirs(column: Column) -> None:
    values = np.linspace(-4.0, 6.0, 41)
    np.testing.assert_allclose(column.decode(column.encode(values)), values, rtol=1e-9, atol=1e-9)
    step = 1e-5
    slope = (column.encode(values + step) - column.encode(values - step)) / (2.0 * step)
    np.testing.assert_allclose(column.log_slope(column.encode(values)), np.log(slope), rtol=1e-5, atol=1e-5)
    far = column.decode(np.array([-1e3, 1e3, np.nan]))  # what a model may draw, and a gap
    assert far[:2].tolist() == [-27.0, 27.0]
    assert np.isnan(far[2])


@pytest.mark.parametrize(
    ("values", "spacing", "levels"),
    [
        (drawn("integers"), 1.0, None),
        (drawn("halves"), 0.5, 20),
        (drawn("tenths"), 0.1, None),
        (drawn("binary"), 1.0, 2),
        (np.array([0.0, 6.0, 6.0, 12.0, 18.0, 0.0]), 6.0, 4),
        (np.array([1.0, 3.0, 3.0, 5.0, 9.0, 1.0]), 2.0, 5),
        (np.array([0.0, 0.2, 0.5, 0.5, 0.7, 1.0, 0.2]), 0.1, 11),
        (np.float32(37.0) + np.float32(0.1) * np.array([0, 1, 1, 2, 3, 7], np.float32), 0.1, 8),
        (np.array([-2.63602, -1.63602, -0.63604, 0.36398, 1.36398, 0.36398]), 1.0, 5),
        (np.array([1e-9, 2e-9, 3e-9, 5e-9, 1e-9]), 1e-9, 5),
    ],
)
def test_the_grid_of_a_column_is_found_and_its_levels_come_back(
    values: np.ndarray, spacing: float, levels: int | None
) -> None:
    column = column_of(values.astype(float), categorical=False)
    assert isinstance(column, Grid)
    assert column.spacing == pytest.approx(spacing, rel=1e-3)
    assert levels in (None, column.levels)
    np.testing.assert_allclose(column.decode(column.encode(values.astype(float))), values, rtol=1e-4, atol=1e-12)
    assert np.isnan(column.decode(np.array([np.nan, 1.0]))).tolist() == [True, False]


def test_values_on_no_grid_are_continuous() -> None:
    assert isinstance(column_of(np.array([0.0, 0.0, 1.0, math.pi, math.pi, 7.3]), False), Asinh | Power | Identity)


def test_names_and_what_was_never_seen() -> None:
    names = np.array(["b", "a", "a", None, "a", "b", "c"], dtype=object)
    column = column_of(names, categorical=True)
    assert isinstance(column, Categories)
    assert column.names[0] == "a"
    np.testing.assert_array_equal(column.encode(np.array(["a", None, "new"], dtype=object)), [0.0, np.nan, 3.0])
    assert column.decode(np.array([0.2, 99.0, np.nan])).tolist() == ["a", column.names[2], None]
    assert column.log_slope(np.array([0.0, 3.0])).tolist() == [0.0, -math.log(8.0)]
    constant = column_of(np.array([True, pd.NA, True], dtype=object), categorical=True)
    assert isinstance(constant, Constant)
    np.testing.assert_array_equal(constant.encode(np.array([True, pd.NA, False], dtype=object)), [0.0, np.nan, 1.0])


def frame(count: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    x = rng.normal(size=count)
    return pd.DataFrame(
        {
            "height": 170.0 + 10.0 * x,
            "visits": rng.poisson(np.exp(0.5 + 0.5 * x)),
            "city": pd.Categorical(np.where(x > 0.3, "north", np.where(rng.random(count) < 0.5, "east", "west"))),
            "member": x + rng.normal(size=count) > 0.0,
            "kind": "same",
            "income": np.exp(10.0 + 0.4 * x),
        }
    )


# Density ------------------------------------------------------------------------------------------------------------


def test_a_frame_comes_back_as_a_frame_of_the_same_columns() -> None:
    table = frame()
    density = ScoreDensity(**QUICK).fit(table)
    assert density.feature_names_in_.tolist() == list(table.columns)
    rows = density.sample(50)
    assert isinstance(rows, pd.DataFrame)
    pd.testing.assert_series_equal(rows.dtypes, table.dtypes)
    assert set(rows["city"]) <= {"north", "east", "west"}
    assert set(rows["kind"]) == {"same"}
    assert rows["visits"].between(table["visits"].min(), table["visits"].max()).all()
    assert bool(np.isfinite(density.score_samples(table)).all())
    pd.testing.assert_frame_equal(rows, density.sample(50))
    assert not rows.equals(density.sample(50, random_state=1))
    with pytest.raises(ValueError, match="feature names should match"):
        density.score_samples(table.rename(columns={"city": "town"}))


def test_the_density_is_one_in_the_units_of_the_table() -> None:
    """A skewed column, by a curved map: the density must integrate to one and be near the truth."""
    rng = np.random.default_rng(0)
    x = np.exp(rng.normal(1.0, 0.5, (3000, 1)))
    density = ScoreDensity(max_steps=400, n_estimators=1, random_state=0).fit(x)
    grid = np.linspace(0.01, 40.0, 4000)[:, None]
    found = density.score_samples(grid)
    assert np.trapezoid(np.exp(found), grid[:, 0]) == pytest.approx(1.0, abs=0.01)
    truth = stats.lognorm(0.5, scale=math.e).logpdf(x[:, 0])
    assert density.score(x) == pytest.approx(truth.mean(), abs=0.05)


def test_integers_get_probabilities() -> None:
    rng = np.random.default_rng(0)
    x = rng.choice(4, p=[0.5, 0.3, 0.15, 0.05], size=(3000, 1)).astype(float)
    density = ScoreDensity(max_steps=600, n_estimators=1, random_state=0).fit(x)
    found = np.exp(density.score_samples(np.arange(4.0)[:, None]))
    np.testing.assert_allclose(found, [0.5, 0.3, 0.15, 0.05], atol=0.05)


def test_the_mixture_of_members_is_a_density_and_their_mean_is_explained() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)) @ np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    density = ScoreDensity(max_steps=30, n_estimators=3, random_state=0).fit(x)
    assert density.ensemble_ is not None
    assert [list(model.context.order) for model in density.ensemble_.members[:2]] == [[0, 1, 2], [2, 1, 0]]
    terms = density._contributions(x)
    np.testing.assert_allclose(density.score_samples(x), np.log(np.exp(terms.sum(-1)).mean(0)), rtol=1e-9)
    u = density.cdf(x[:5])
    np.testing.assert_allclose(density.quantile(u), x[:5], atol=1e-3)


def test_constant_columns_have_a_say_where_they_change() -> None:
    x = np.column_stack([np.random.default_rng(0).normal(size=100), np.full(100, 3.0)])
    detector = ScoreOutlierDetector(**QUICK).fit(x)
    other = x[:1].copy()
    other[0, 1] = 4.0
    assert detector.score_samples(x[:1])[0] - detector.score_samples(other)[0] == pytest.approx(
        math.log(101.0), abs=1e-6
    )
    only = ScoreDensity(**QUICK).fit(np.full((20, 2), 3.0))
    np.testing.assert_array_equal(only.sample(4), np.full((4, 2), 3.0))


def test_gaps_are_filled_by_what_is_known() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=600)
    table = pd.DataFrame(
        {"a": first, "b": 2.0 * first + 0.1 * rng.normal(size=600), "c": np.where(first > 0, "p", "n")}
    )
    density = ScoreDensity(max_steps=400, n_estimators=1, random_state=0).fit(table)
    gaps = table.head(60).copy()
    gaps.index = gaps.index + 1000
    gaps.loc[gaps.index[:30], "a"] = np.nan
    gaps.loc[gaps.index[30:], "c"] = None
    filled = density.impute(gaps)
    assert isinstance(filled, pd.DataFrame)
    assert filled.index.equals(gaps.index)
    assert not filled.isna().any().any()
    assert np.abs(filled["a"].to_numpy()[:30] - first[:30]).mean() < 0.25
    certain = np.abs(first[30:60]) > 0.3
    assert (filled["c"].to_numpy()[30:][certain] == table["c"].to_numpy()[30:60][certain]).mean() > 0.9
    pd.testing.assert_series_equal(filled["b"], gaps["b"])
    rows = density.conditional(["b"], [2.0], draws=40)
    assert isinstance(rows, pd.DataFrame)
    np.testing.assert_allclose(rows["b"], 2.0, atol=1e-6)
    assert abs(float(rows["a"].mean()) - 1.0) < 0.2
    with pytest.raises(ValueError, match="columns: unknown d; known: a, b, c"):
        density.conditional(["d"], [0.0])
    with pytest.raises(ValueError, match="row 0, column 'a', but no value was missing when fitting"):
        density.score_samples(gaps)
    assert bool(np.isfinite(clone(density).set_params(missing=True, max_steps=20).fit(table).score_samples(gaps)).all())


def test_rows_with_gaps_train_and_score() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    x[:, 2] = x[:, 0] + 0.1 * x[:, 2]
    x[rng.random(x.shape) < 0.2] = np.nan
    detector = ScoreOutlierDetector(max_steps=150, n_estimators=1, random_state=0).fit(x)
    contributions = detector.explain(x)
    for column in range(3):  # a gap speaks neither for nor against a row, whatever the units
        gaps = np.isnan(x[:, column])
        np.testing.assert_allclose(contributions[gaps, column], np.median(contributions[~gaps, column]), rtol=1e-9)
    small = ScoreOutlierDetector(max_steps=150, n_estimators=1, random_state=0).fit(x * [1e-4, 1.0, 1.0])
    np.testing.assert_array_equal(small.predict(x * [1e-4, 1.0, 1.0]), detector.predict(x))
    usual, broken = detector.score_samples([[1.0, np.nan, 1.0], [1.0, np.nan, -2.0]])
    assert usual > broken + 3.0


def test_levels_that_are_no_multiples_of_their_step_are_filled() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, 600).astype(float)
    table = np.column_stack([x, 2.0 * x + 5.0])
    density = ScoreDensity(max_steps=400, n_estimators=1, random_state=0).fit(table)
    gaps = table[:40].copy()
    gaps[:, 1] = np.nan
    np.testing.assert_array_equal(density.impute(gaps)[:, 1], table[:40, 1])


def test_draws_of_a_skewed_column_stay_where_data_are() -> None:
    x = np.random.default_rng(0).gamma(0.3, size=(800, 1))
    density = ScoreDensity(max_steps=200, n_estimators=1, random_state=0).fit(x)
    sample = np.asarray(density.sample(3000))
    assert sample.max() <= 2.0 * x.max()
    assert sample.mean() == pytest.approx(x.mean(), rel=0.25)


def test_columns_far_from_zero_keep_their_digits() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 1))
    near = ScoreDensity(max_steps=60, n_estimators=1, random_state=0).fit(x)
    far = ScoreDensity(max_steps=60, n_estimators=1, random_state=0).fit(1.7e9 + 1e-3 * x)
    np.testing.assert_allclose(far.score_samples(1.7e9 + 1e-3 * x), near.score_samples(x) - math.log(1e-3), atol=0.02)


def test_values_far_out_are_never_normal() -> None:
    x = np.random.default_rng(0).gamma(2.0, size=(300, 2)) ** 0.4
    detector = ScoreOutlierDetector(**QUICK).fit(x)
    for value in (1e3, 1e10, 1e60, 1e200, 1e308, -1e308):
        assert detector.score_samples([[value, 1.0]])[0] < detector.fitted_scores_.min()
    assert bool(np.isfinite(ScoreDensity(**QUICK).fit(x).impute([[1e300, np.nan]])).all())


def test_frames_of_many_types() -> None:
    table = frame(120)
    table["flag"] = pd.array(np.where(np.arange(120) % 3, True, False), dtype="boolean")
    table["count"] = pd.array(np.arange(120) % 4, dtype="Int64")
    table["text"] = pd.array(np.where(np.arange(120) % 2, "a", "b"), dtype="string")
    table["loose"] = table["height"].astype(object)
    table.loc[5, ["flag", "count", "text"]] = pd.NA
    table.loc[6, "loose"] = None
    density = ScoreDensity(**QUICK).fit(table)
    names = dict(zip(table.columns, (type(kind).__name__ for kind in density.columns_.kinds), strict=True))
    assert names["flag"] == names["text"] == "Categories"
    assert names["count"] == "Grid"
    assert names["loose"] == "Identity"
    filled = density.impute(table)
    assert isinstance(filled, pd.DataFrame)
    assert not filled.isna().any(axis=None)
    pd.testing.assert_series_equal(filled.dtypes.drop("loose"), table.dtypes.drop("loose"))
    low, high = ScoreOutlierDetector(**QUICK).fit(table).expected(table.head(8))  # rows with gaps too
    assert len(low) == len(high) == 8
    with pytest.raises(ValueError, match="'when' holds dates or times"):
        ScoreDensity(**QUICK).fit(table.assign(when=pd.Timestamp("2026-01-01")))
    with pytest.raises(ValueError, match="'who' has another name in almost every row"):
        ScoreDensity(**QUICK).fit(table.assign(who=[f"n{index}" for index in range(120)]))
    numbered = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)))
    with pytest.raises(ValueError, match=r"columns: expected \[0, 1\], got \[1, 0\]"):
        ScoreDensity(**QUICK).fit(numbered).score_samples(numbered[[1, 0]])


def test_a_condition_that_never_was_is_refused() -> None:
    density = ScoreDensity(**QUICK).fit(frame(120))
    for column, value in (("city", "nowhere"), ("visits", 1.5), ("visits", 1000), ("kind", "other")):
        with pytest.raises(ValueError, match=f"values: '{column}' was never"):
            density.conditional([column], [value])
    rows = density.conditional(["city", "kind"], ["north", "same"], draws=5)
    assert isinstance(rows, pd.DataFrame)
    assert set(rows["city"]) == {"north"}


# Outliers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector() -> ScoreOutlierDetector:
    data = load_breast_cancer(as_frame=True)
    return ScoreOutlierDetector(max_steps=200, n_estimators=1, random_state=0).fit(data.data[data.target == 1][:250])


def test_outliers_of_a_real_table_are_found(detector: ScoreOutlierDetector) -> None:
    data = load_breast_cancer(as_frame=True)
    test = pd.concat([data.data[data.target == 1][250:], data.data[data.target == 0]])
    outlying = np.r_[np.zeros(107), np.ones(212)]
    assert roc_auc_score(outlying, -detector.score_samples(test)) > 0.93
    p = detector.p_values(test)
    assert p.min() >= 1.0 / (1.0 + len(detector.held_out_scores_))
    assert np.median(p[outlying == 1]) < 0.05 < np.median(p[outlying == 0])


def test_explanations_sum_to_the_score_and_name_the_culprit(detector: ScoreOutlierDetector) -> None:
    data = load_breast_cancer(as_frame=True).data
    row = data[250:].head(3).copy()
    np.testing.assert_allclose(detector.explain(row).sum(1), detector.score_samples(row), rtol=1e-12)
    row.loc[row.index[1], "mean smoothness"] *= 5.0
    blamed = detector.top_contributions(row, columns=2)
    assert len(blamed) == 6
    own = blamed[blamed["row"] == 1]
    assert "mean smoothness" in own["column"].tolist()
    assert own["contribution"].min() < -5.0


def test_scores_do_not_depend_on_the_company(detector: ScoreOutlierDetector) -> None:
    data = load_breast_cancer(as_frame=True).data
    np.testing.assert_allclose(
        detector.score_samples(data[:40])[7:9], detector.score_samples(data[7:9]), rtol=1e-9, atol=1e-9
    )


def test_every_score_is_lower_for_outliers(detector: ScoreOutlierDetector) -> None:
    data = load_breast_cancer(as_frame=True)
    test = pd.concat([data.data[data.target == 1][250:], data.data[data.target == 0][:60]])
    scores = detector.all_scores(test)
    levels = detector.ensemble_.plan.levels
    assert scores.shape == (167, 2 * levels + 1)
    np.testing.assert_allclose(scores.iloc[:, levels - 1], detector.score_samples(test), rtol=1e-9)
    for name, score in scores.items():
        assert roc_auc_score(np.r_[np.zeros(107), np.ones(60)], -score) > 0.8, name
    np.testing.assert_allclose(detector.all_scores(test[7:9]), scores[7:9], rtol=1e-7)
    table = {str(name): torch.tensor(score.to_numpy()) for name, score in scores.items()}
    combination = Combination().fit({name: score[:60] for name, score in table.items()})
    assert roc_auc_score(np.r_[np.zeros(47), np.ones(60)], combination.score(table)[60:]) > 0.8


def test_all_scores_of_gaps_and_of_nothing_that_varies() -> None:
    x = np.random.default_rng(0).normal(size=(300, 3)) * [1.0, 2.0, 0.0]
    gappy = x.copy()
    gappy[::3, 1] = np.nan
    detector = ScoreOutlierDetector(max_steps=50, n_estimators=2, random_state=0).fit(gappy)
    scores = detector.all_scores([[0.0, np.nan, 0.0], [0.0, np.nan, 1.0], [9.0, np.nan, 0.0]])
    assert bool(np.isfinite(scores.to_numpy()).all())
    assert bool((scores.filter(like="likelihood").iloc[0] > scores.filter(like="likelihood").iloc[1] + 3.0).all())
    assert bool((scores.drop(columns="tails").iloc[0] > scores.drop(columns="tails").iloc[2]).all())
    constant = ScoreOutlierDetector().fit(np.ones((20, 2))).all_scores([[1.0, 1.0], [1.0, 2.0]])
    assert list(constant) == ["likelihood"]
    assert constant["likelihood"][0] > constant["likelihood"][1]


def test_the_threshold_moves_without_fitting_again(detector: ScoreOutlierDetector) -> None:
    data = load_breast_cancer(as_frame=True)
    fitted = data.data[data.target == 1][:250]
    for share in (0.02, 0.2):
        found = (clone_of(detector).set_contamination(share).predict(fitted) == -1).mean()
        assert found == pytest.approx(share, abs=0.01)
    with pytest.raises(ValueError, match="contamination"):
        detector.set_contamination(0.9)


def clone_of(detector: ScoreOutlierDetector) -> ScoreOutlierDetector:
    found: ScoreOutlierDetector = pickle.loads(pickle.dumps(detector))
    return found


def test_far_values_have_finite_scores(detector: ScoreOutlierDetector) -> None:
    data = load_breast_cancer(as_frame=True).data.head(2).copy()
    data.iloc[0, 3] = 1e300
    data.iloc[1, 3] = -1e12
    scores = detector.score_samples(data)
    assert bool(np.isfinite(scores).all())
    assert bool((detector.predict(data) == -1).all())


def test_they_work_where_scikit_learn_puts_them() -> None:
    x = np.random.default_rng(0).normal(size=(120, 2))
    pipeline = make_pipeline(StandardScaler(), ScoreDensity(**QUICK)).fit(x)
    assert np.isfinite(pipeline.score(x))
    search = GridSearchCV(ScoreDensity(**QUICK), {"max_steps": [2, 40]}, cv=2).fit(x)
    assert search.best_params_ == {"max_steps": 40}
    assert clone(search.best_estimator_).get_params()["max_steps"] == 40


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: ScoreDensity(**{**QUICK, "n_estimators": 0}).fit(x),
            "n_estimators: expected a whole number of at least 1",
        ),
        (lambda x: ScoreDensity(**QUICK, validation_fraction=1.5).fit(x), "validation_fraction: expected a share"),
        (lambda x: ScoreOutlierDetector(contamination=0.7, **QUICK).fit(x), "contamination: expected"),
        (lambda x: ScoreDensity(**QUICK).fit(x[:1]), "at least 2 samples"),
        (lambda x: ScoreDensity(**QUICK).fit(np.c_[x, np.full(len(x), np.nan)]), "column 2 holds nothing but missing"),
        (lambda x: ScoreDensity(**QUICK).fit(pd.DataFrame({"a": [1.0, np.inf, 2.0]})), "column 'a', row 1"),
        (lambda x: ScoreDensity(**QUICK).fit(pd.DataFrame({"a": []})), "0 sample"),
        (lambda x: ScoreDensity(**QUICK).fit(x).quantile(np.full((3, 1), 0.5)), r"U: expected shape \(N, 2\)"),
    ],
)
def test_mistakes_are_named(call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0).normal(size=(40, 2)))


def test_columns_say_what_they_are() -> None:
    columns = Columns.of(frame())
    assert [type(kind).__name__ for kind in columns.kinds] == [
        "Identity",
        "Grid",
        "Categories",
        "Categories",
        "Constant",
        "Power",
    ]
    assert columns.modelled == [0, 1, 2, 3, 5]
    assert describe(columns.kinds) == "6 columns: 2 continuous, 1 discrete, 2 of names, 1 constant"


# What people read ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged() -> tuple[ScoreOutlierDetector, pd.DataFrame]:
    table = frame(500)
    rows = table.tail(60).reset_index(drop=True)
    rows.loc[3, "income"] = 1e7
    rows.loc[5, "visits"] = 60
    rows["city"] = rows["city"].astype(object)
    rows.loc[7, "city"] = "elsewhere"
    rows.loc[9, "kind"] = "other"
    detector = ScoreOutlierDetector(max_steps=150, n_estimators=2, random_state=0).fit(table.head(440))
    return detector, rows


def test_verdicts_say_in_words_what_was_expected(judged: tuple[ScoreOutlierDetector, pd.DataFrame]) -> None:
    detector, rows = judged
    found = verdicts(detector, rows)
    assert len(found) == len(rows)
    assert found.loc[[3, 5, 7], "outlier"].all()
    assert found.loc[3, "because"].startswith("income: expected ")
    assert found.loc[3, "because"].split("; ")[0].endswith("saw 1e+07")
    assert found.loc[5, "column_1"] == "visits"
    assert "city: expected" in found.loc[7, "because"]
    assert "saw elsewhere" in found.loc[7, "because"]
    assert found.loc[9, "column_1"] == "kind"
    assert (found.loc[~found["outlier"], "because"] == "").all()
    by_p = verdicts(detector, rows, threshold=0.02)
    assert ((by_p["p_value"] <= 0.02) == by_p["outlier"]).all()
    with pytest.raises(ValueError, match="p-value: expected at least"):
        verdicts(detector, rows, threshold=1e-4)


def test_the_page_shows_what_was_expected(judged: tuple[ScoreOutlierDetector, pd.DataFrame], tmp_path: Path) -> None:
    detector, rows = judged
    write_detection_report(detector, DetectionResult.of(detector, [rows]), tmp_path / "page.html", "rows <judged>")
    page = (tmp_path / "page.html").read_text()
    assert "rows &lt;judged&gt;" in page
    assert "income: expected" in page
    assert page.count("data:image/png;base64,") >= 4
    assert "http" not in page.replace("data:image", "")


def test_a_table_judged_in_parts_is_judged_as_a_whole(judged: tuple[ScoreOutlierDetector, pd.DataFrame]) -> None:
    detector, rows = judged
    whole, written = verdicts(detector, rows), []
    parts = [rows.iloc[start : start + 13].reset_index(drop=True) for start in range(0, len(rows), 13)]
    found = DetectionResult.of(detector, parts, write=written.append)
    pd.testing.assert_frame_equal(pd.concat(written, ignore_index=True), whole, rtol=1e-9)
    np.testing.assert_allclose(found.scores, whole["score"], rtol=1e-9)
    assert found.flagged == whole["outlier"].sum()
    expected = whole.sort_values("score", kind="stable").head(20)
    assert found.worst["row"].tolist() == expected["row"].tolist()
    pd.testing.assert_frame_equal(found.rows, rows.iloc[expected["row"]].reset_index(drop=True))


def test_what_was_expected_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2500, 2))
    x[:, 1] = 0.8 * x[:, 0] + 0.6 * x[:, 1]
    detector = ScoreOutlierDetector(max_steps=400, n_estimators=1, random_state=0).fit(x[:2000])
    low, high = detector.expected(x[2000:], 0.8)
    inside = (low < x[2000:]) & (x[2000:] < high)
    np.testing.assert_allclose(inside.mean(0), 0.8, atol=0.06)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_detect_judges_a_table_by_another(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Plan, "of", classmethod(lambda cls, *_: Plan(1, 16, (16,), (16,), 0, 0.3, 6, 5e-3, 30, 64, 5e-3, True))
    )
    table = frame(200)
    write_frame(tmp_path / f"normal{suffix}", table.head(150))
    new = table.tail(50)[list(reversed(table.columns))].copy()
    new.loc[new.index[0], "height"] = np.nan
    new.loc[new.index[1], ["visits", "income"]] = [np.nan, 1e9]
    new.loc[new.index[2], "city"] = None
    write_frame(tmp_path / f"new{suffix}", new)
    monkeypatch.setattr(tables, "_PART_ROWS", 20)
    names = [str(tmp_path / f"{name}{suffix}") for name in ("normal", "new", "scores")]
    assert application.run(["detect", *names[:2], "--out", names[2], "--report", str(tmp_path / "page.html")]) == 0
    scores = read_frame(names[2])
    assert scores["row"].tolist() == list(range(50))
    assert (tmp_path / "page.html").stat().st_size > 10_000
    assert application.run(["impute", names[1], "--out", str(tmp_path / f"filled{suffix}")]) == 0
    filled = read_frame(tmp_path / f"filled{suffix}")
    assert list(filled.columns) == list(new.columns)
    assert not filled.isna().any(axis=None)


def test_tables_in_one_archive_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Plan, "of", classmethod(lambda cls, *_: Plan(1, 16, (16,), (16,), 0, 0.3, 6, 5e-3, 30, 64, 5e-3, True))
    )
    numbers = np.random.default_rng(0).normal(size=(150, 2))
    np.savez(tmp_path / "tables.npz", normal=numbers[:120], new=numbers[120:])
    archive, out = str(tmp_path / "tables.npz"), str(tmp_path / "scores.csv")
    assert application.run(["detect", f"{archive}:normal", f"{archive}:new", "--with-data", "--out", out]) == 0
    found = read_frame(out)
    np.testing.assert_allclose(found[["x0", "x1"]].to_numpy(), numbers[120:])
    assert found["row"].tolist() == list(range(30))


def test_categories_of_numerals_are_names(tmp_path: Path) -> None:
    codes = pd.Series(["10", None, "20"] * 20, dtype="category")
    pd.DataFrame({"code": codes, "x": np.arange(60.0)}).to_parquet(tmp_path / "t.parquet")
    found = read_frame(tmp_path / "t.parquet")
    assert found["code"].iloc[:3].tolist()[::2] == ["10", "20"]
    assert found["code"].isna().sum() == 20
    pd.DataFrame({"x": [1.0], "code": [20]}).to_csv(tmp_path / "t.csv", index=False)
    assert read_frame(tmp_path / "t.csv", like=found)["code"].tolist() == ["20"]
    assert read_frame(tmp_path / "t.parquet", like=found)["code"].equals(found["code"])
    assert isinstance(Columns.of(found).kinds[0], Categories)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_a_table_in_parts_is_the_table(tmp_path: Path, suffix: str) -> None:
    table = frame(100)
    table["code"] = np.array(["7", "8"] * 50, dtype=object)
    table.loc[table.index[70], "height"] = np.nan
    path = tmp_path / f"table{suffix}"
    table.to_parquet(path, index=False) if suffix == ".parquet" else table.to_csv(path, index=False)
    like = table.head(10)
    whole = read_frame(path, like)
    parts = list(frame_parts(path, like, 30))
    assert [len(part) for part in parts] == [30, 30, 30, 10]
    assert [part.index[0] for part in parts] == [0, 0, 0, 0]
    for d, name in enumerate(whole.columns):
        assert pd.concat([part.iloc[:, d] for part in parts]).isna().tolist() == whole[name].isna().tolist()
        known = whole[name].notna().to_numpy()
        joined = pd.concat([part.iloc[:, d] for part in parts], ignore_index=True)
        assert joined[known].tolist() == whole.loc[known, name].tolist()
    assert set(parts[0]["code"]) == {"7", "8"}  # names, though every part of them looks like numbers


def test_a_mistake_far_down_a_file_is_named_by_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n" + "1,2\n" * 50 + "1,oops\n")
    parts = frame_parts(tmp_path / "a.csv", pd.DataFrame({"x": [1], "y": [2]}), 20)
    assert len(next(parts)) == len(next(parts)) == 20
    with pytest.raises(ValueError, match="line 52, column 'y': expected a number, got 'oops'"):
        next(parts)
    cut = pd.DataFrame({"x": np.arange(1000.0)})
    cut.to_parquet(tmp_path / "b.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"b\.parquet: cannot be read, damaged"):
        next(frame_parts(tmp_path / "b.parquet", None, 20))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_written_in_parts_is_there_whole_or_not_at_all(tmp_path: Path, suffix: str) -> None:
    path, table = tmp_path / f"table{suffix}", frame(40)
    with frame_writer(path) as write:
        write(table.head(25))
        write(table.tail(15))
    pd.testing.assert_frame_equal(read_frame(path, table), read_frame(path), check_dtype=False)
    assert read_frame(path)["income"].tolist() == table["income"].tolist()
    before = path.read_bytes()

    def interrupted() -> None:
        with frame_writer(path) as write:
            write(table.head(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("a,b\n1,2\n3,4\n", "a,c\n1,2\n", "columns b are missing; it has c instead"),
        ("a,b\n1,2\n3,4\n", "a,b\n1,2\nx,4\n", "line 3, column 'a': expected a number, got 'x'"),
        ("a\n" + "1\n2\n" * 20 + "oops\n", "a\n1\n", "line 42, column 'a': expected a number, got 'oops'"),
        ("a,b\n", "a,b\n1,2\n", "expected at least one row of data, got none"),
        ("", "a,b\n1,2\n", "the file is empty"),
        ("a,b\n1,2\n3,inf\n", "a,b\n1,2\n", "line 3, column 'b': expected a finite number, got inf"),
        ("a,b\n1,2\n", "a,b\n1,2\n", "at least 2 samples"),
        ("a,b\n1,\n2,\n", "a,b\n1,2\n", "column 'b' holds nothing but missing values"),
    ],
)
def test_detect_names_what_is_wrong_with_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], train: str, test: str, message: str
) -> None:
    (tmp_path / "train.csv").write_text(train)
    (tmp_path / "test.csv").write_text(test)
    arguments = ["detect", str(tmp_path / "train.csv"), str(tmp_path / "test.csv"), "--out", str(tmp_path / "s.csv")]
    assert application.run(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_csv_file_without_a_header_gets_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2.5\n3,\n")
    table = read_frame(tmp_path / "a.csv")
    assert list(table.columns) == ["x0", "x1"]
    assert table.isna().to_numpy().tolist() == [[False, False], [False, True]]
    (tmp_path / "b.csv").write_text("1,,3\n4,5,6\n")
    assert read_frame(tmp_path / "b.csv").shape == (2, 3)
    (tmp_path / "c.csv").write_text("code\n1\n2\n")
    codes = read_frame(tmp_path / "c.csv", like=pd.DataFrame({"code": np.array(["1", "A"], dtype=object)}))
    assert codes["code"].tolist() == ["1", "2"]  # names, as in the table that it is to be like
    pd.DataFrame({"when": pd.to_datetime(["2026-01-01", None])}).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(ValueError, match="'when' holds dates or times"):
        read_frame(tmp_path / "d.parquet")
    with pytest.raises(ValueError, match=r"expected a file name that ends in"):
        write_frame(tmp_path / "a.txt", table)
    with pytest.raises(ValueError, match="expected a file name that ends in"):
        read_frame(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("red,1.5,3", "blue,7.5,8", "1.5"),  # data, or names such as those of a spectrum
        ("red,-1,3", "blue,7.5,8", "-1"),
        ("red,1e3,3", "blue,7.5,8", "1e3"),
        ("red,true,2", "blue,false,8", "true"),
        ("name,2001,2002", "blue,7.5,8", None),  # years
        ("a,NA,b", "blue,7.5,8", None),
        ("q,0.5", "1,2", None),  # what stands above a number is a name
    ],
)
def test_a_first_row_with_text_is_names_and_what_looks_like_a_value_there_is_said(
    tmp_path: Path, first: str, second: str, said: str | None
) -> None:
    (tmp_path / "a.csv").write_text(f"{first}\n{second}\n{second}\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = read_frame(tmp_path / "a.csv")
    assert table.columns.tolist() == first.split(",")
    assert len(table) == 2
    assert [str(warning.message).count(f"though {said!r} looks like a value") for warning in caught] == [1] * bool(said)


def test_a_table_with_numbers_for_names_comes_back_without_a_word(tmp_path: Path) -> None:
    table = pd.DataFrame({"kind": ["a", "b"], "0.5": [1.5, 2.5]})
    write_frame(tmp_path / "a.csv", table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pd.testing.assert_frame_equal(read_frame(tmp_path / "a.csv", like=table), table, check_dtype=False)


def test_held_out_rows_say_which_plan_is_better() -> None:
    random = np.random.default_rng(0)
    bunched = np.repeat(random.normal(size=(40, 3)), 10, 0) + 0.002 * random.normal(size=(400, 3))
    bent = np.stack([random.normal(size=400), random.normal(size=400)], 1)
    sharp = ScoreDensity(n_estimators=1, random_state=0).fit(bunched)
    plain = ScoreDensity(n_estimators=1, random_state=0).fit(bent)
    assert (sharp.plan_.sinusoids > 0, plain.plan_.sinusoids > 0) == (True, False)
    assert len(sharp.ensemble_.members) == len(plain.ensemble_.members) == 1
    assert sharp.ensemble_.members[0].noise.sigma_min == sharp.plan_.sigma_min < plain.plan_.sigma_min


def test_names_without_a_header_are_names_in_every_part(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("7,1\nA1,2\nA1,3\nA1,4\n8,5\n8,6\n8,7\n")
    like = pd.DataFrame({"x0": ["A1", "8", "7"], "x1": [1, 2, 3]})
    whole = read_frame(tmp_path / "a.csv", like)
    parts = pd.concat(frame_parts(tmp_path / "a.csv", like, 3))
    assert whole["x0"].tolist() == parts["x0"].tolist() == ["7", "A1", "A1", "A1", "8", "8", "8"]


def test_scores_of_rows_do_not_depend_on_the_units_of_a_table() -> None:
    random = np.random.default_rng(0)
    rows = np.stack([random.poisson(4.0, 150), random.normal(size=150)], 1)
    scaled = rows * [10.0, 1000.0]
    found = []
    for table in (rows, scaled):
        detector = ScoreOutlierDetector(n_estimators=1, max_steps=20, random_state=0).fit(table)
        found.append(detector.explain(table))
    np.testing.assert_allclose(found[0], found[1], rtol=0.0, atol=1e-3)
