"""The regressor: scikit-learn's checks, predictions of known conditionals, several targets, gaps and wrong input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from arcsm.estimators import ScoreRegressor
from small_tables import QUICK, mixed_table
from small_targets import ROUGH, fitted, targets, use_one_model


def linear() -> ScoreRegressor:
    return fitted("linear", 400)


def failing_checks(_: Any) -> dict[str, str]:
    return {"check_regressors_train": "needs a thousand steps to learn from features that the check rounds to levels"}


@pytest.mark.slow
@parametrize_with_checks([ScoreRegressor(random_state=0)], expected_failed_checks=failing_checks)
def test_the_regressor_passes_the_checks_of_scikit_learn(
    estimator: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_one_model(monkeypatch, **{**ROUGH, "max_steps": 20})
    check(estimator)


@pytest.mark.slow
def test_predictions_minimise_their_losses() -> None:
    x, y = targets("skewed", 1000, seed=1)
    regressor = fitted("skewed")
    found = {statistic: regressor.predict(x, statistic) for statistic in ("mean", "median", "mode")}
    assert ((y - found["mean"]) ** 2).mean() < ((y - found["median"]) ** 2).mean()
    assert abs(y - found["median"]).mean() < abs(y - found["mean"]).mean()
    assert (found["mode"] < found["median"]).mean() > 0.95
    assert (found["median"] < found["mean"]).mean() > 0.95


def test_scores_are_those_of_the_targets() -> None:
    x, y = targets("linear", 1000, seed=1)
    regressor = linear()
    assert regressor.score(x, y) == pytest.approx(0.8, abs=0.03)  # the share of the variance that is not noise
    assert regressor.log_score(x, y) == pytest.approx(-0.5 * np.log(2.0 * np.pi * np.e), abs=0.05)
    with pytest.raises(ValueError, match=r"y: expected shape \(1000,\), got \(1000, 1\)"):
        regressor.log_score(x, y[:, None])


def test_several_targets_are_predicted_jointly(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = targets("two", 300, seed=1)
    regressor = fitted("two", 400)
    assert regressor.predict(x).shape == (300, 2)
    truth = -0.5 * ((y[:, 0] - x[:, 0]) ** 2 + (y[:, 1] - y[:, 0] + x[:, 0]) ** 2) - np.log(2.0 * np.pi)
    assert regressor.log_score(x, y) == pytest.approx(truth.mean(), abs=0.1)
    use_one_model(monkeypatch, **ROUGH)
    column = ScoreRegressor(random_state=0).fit(x, y[:, :1])
    assert column.predict(x).shape == column.predict_distribution(x).quantile(0.5).shape == (300, 1)
    np.testing.assert_array_equal(column.predict(x)[:, 0], ScoreRegressor(random_state=0).fit(x, y[:, 0]).predict(x))


def test_frames_of_all_types_with_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_model(monkeypatch, **ROUGH)
    table = mixed_table(100).rename(columns={"kind": "target"}).astype({"city": object})
    table.loc[:20, "height"] = np.nan
    table.loc[10:30, "city"] = None
    features, income = table.drop(columns="income"), table["income"]
    regressor = ScoreRegressor(**QUICK).fit(features, income)
    assert regressor.feature_names_in_.tolist() == list(features)
    assert list(regressor._joint.columns_.labels) == [*features, "hint", "_target"]
    predicted = regressor.predict(features)
    assert np.isfinite(predicted).all()
    np.testing.assert_array_equal(regressor.predict(features.assign(city="elsewhere").head(9)),
                                  regressor.predict(features.assign(city=None).head(9)))  # fmt: skip
    native = polars.from_pandas(features)
    np.testing.assert_allclose(ScoreRegressor(**QUICK).fit(native, income).predict(native), predicted)
    with pytest.raises(ValueError, match="feature names should match"):
        regressor.predict(table)


def test_constant_targets_and_features_are_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_model(monkeypatch, **ROUGH)
    x, y = targets("linear", 60)
    for features in (x, np.ones_like(x)):
        found = ScoreRegressor(**QUICK).fit(features, np.full(60, 4.0))
        np.testing.assert_array_equal(found.predict(x), 4.0)
    assert np.ptp(ScoreRegressor(**QUICK).fit(np.ones_like(x), y).predict(x)) == 0.0
    both = ScoreRegressor(**QUICK).fit(x, np.stack([np.full(60, 4.0), y], 1))
    assert both.predict(x)[:, 0].tolist() == [4.0] * 60
    assert np.isfinite(both.log_score(x, np.stack([np.full(60, 4.0), y], 1)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: ScoreRegressor(**QUICK).fit(x, None), "requires y to be passed"),
        (lambda x, y: ScoreRegressor(**QUICK).fit(x, np.where(y > 1.0, np.nan, y)), "Input y contains NaN"),
        (lambda x, y: ScoreRegressor(**QUICK).fit(x, ["a"] * len(x)), "y: expected numbers.*labels are for ScoreClas"),
        (
            lambda x, y: ScoreRegressor(**QUICK).fit(x, pd.date_range("2026-01-05", periods=50)),
            "^y: expected numbers, got '2026-01-05.*unit",
        ),
        (
            lambda x, y: ScoreRegressor(**QUICK).fit(x, pd.to_timedelta(range(50), unit="h")),
            "^y: expected numbers, got '0 .*unit",
        ),
        (lambda x, y: linear().predict(x, "best"), "statistic: expected one of mean, median, mode, got 'best'"),
        (lambda x, y: linear().predict(np.c_[x, x]), "X has 2 features, but ScoreRegressor is expecting 1"),
    ],
)
def test_wrong_input_raises_a_value_error(call: Callable[[Any, Any], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*targets("linear", 50))


@pytest.mark.slow
def test_conditionals_follow_large_known_values() -> None:
    random = np.random.default_rng(0)
    x = np.append(random.normal(size=300), [3.7, -3.7])
    y = 3.0 * x + 0.3 * random.normal(size=302)
    regressor = ScoreRegressor(max_steps=400, random_state=0).fit(x[:, None], y)
    np.testing.assert_allclose(regressor.predict([[3.5], [-3.5]]), [10.5, -10.5], atol=0.6)
    assert regressor.predict([[5.0]])[0] > 13.0  # the nonlinear part alone is bounded: 11.0 and 9.6


def test_categories_that_no_fitted_row_has_count_as_missing_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_model(monkeypatch, **ROUGH)
    random = np.random.default_rng(0)
    names = random.choice(["a", "b", "c"], 300)
    table = pd.DataFrame({"name": names, "x": random.normal(size=300)})
    rows = pd.DataFrame({"name": [None, "d", "a"], "x": 0.0})
    regressor = ScoreRegressor(max_steps=20, random_state=0).fit(table, (names == "a") + table["x"])
    with pytest.warns(UserWarning, match="column 'name' has categories that no fitted row has; they count as missing"):
        found = regressor.predict(rows)
    assert found[0] == found[1] != found[2]
