"""The regressor: scikit-learn's checks, predictions of known conditionals, several targets, gaps and wrong input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from arcsm.estimators import ScoreDensity, ScoreRegressor
from small_tables import QUICK, mixed_table, use_small_models
from small_targets import ROUGH, fitted, targets, use_one_model


def failing_checks(_: Any) -> dict[str, str]:
    return {"check_regressors_train": "needs a thousand steps to learn from features that the check rounds to levels"}


@parametrize_with_checks([ScoreRegressor(random_state=0)], expected_failed_checks=failing_checks)
def test_the_regressor_passes_the_checks_of_scikit_learn(
    estimator: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_one_model(monkeypatch, **{**ROUGH, "max_steps": 20})
    check(estimator)


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
    regressor = fitted("linear")
    assert regressor.score(x, y) == pytest.approx(0.8, abs=0.03)  # the share of the variance that is not noise
    assert regressor.log_score(x, y) == pytest.approx(-0.5 * np.log(2.0 * np.pi * np.e), abs=0.05)
    with pytest.raises(ValueError, match=r"y: expected shape \(1000,\), got \(1000, 1\)"):
        regressor.log_score(x, y[:, None])


def test_several_targets_are_predicted_jointly(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = targets("two", 300, seed=1)
    regressor = fitted("two")
    assert regressor.predict(x).shape == (300, 2)
    truth = -0.5 * ((y[:, 0] - x[:, 0]) ** 2 + (y[:, 1] - y[:, 0] + x[:, 0]) ** 2) - np.log(2.0 * np.pi)
    assert regressor.log_score(x, y) == pytest.approx(truth.mean(), abs=0.1)
    use_one_model(monkeypatch, **ROUGH)
    column = ScoreRegressor(random_state=0).fit(x, y[:, :1])
    assert column.predict(x).shape == column.predict_distribution(x).quantile(0.5).shape == (300, 1)
    np.testing.assert_array_equal(column.predict(x)[:, 0], ScoreRegressor(random_state=0).fit(x, y[:, 0]).predict(x))


def test_frames_of_all_types_with_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    table = mixed_table(200).rename(columns={"kind": "target"}).astype({"city": object})
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
    numbered = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)))
    assert ScoreRegressor(**QUICK).fit(numbered, numbered[0]).predict(numbered).shape == (60,)
    with pytest.raises(ValueError, match="feature names should match"):
        regressor.predict(table)


def test_constant_targets_and_features_are_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
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
        (lambda x, y: ScoreRegressor(**QUICK).fit(x, np.where(y > 1.0, np.inf, y)), "Input y contains infinity"),
        (lambda x, y: ScoreRegressor(**QUICK).fit(x, y[:-1]), "inconsistent numbers of samples"),
        (lambda x, y: ScoreRegressor(**QUICK).fit(x[:1], y[:1]), "at least 2 samples"),
        (lambda x, y: ScoreRegressor(**QUICK).fit(x, y[:, None, None]), "Found array with dim 3"),
        (lambda x, y: ScoreRegressor(**QUICK).fit(x, ["a"] * len(x)), "y: expected numbers.*labels are for ScoreClas"),
        *[
            (
                lambda x, y, times=times: ScoreRegressor(**QUICK).fit(x, times),
                f"^y: expected numbers, got '{first}.*unit",
            )
            for times, first in (
                (pd.date_range("2026-01-05", periods=50), "2026-01-05"),
                (pd.Series(pd.date_range("2026-01-05", periods=50, tz="UTC")), "2026-01-05"),
                (pd.date_range("2026-01-05", periods=50).date.tolist(), "2026-01-05"),
                (pd.to_timedelta(range(50), unit="h"), "0 "),
                (pd.Series(pd.period_range("2026-01", periods=50, freq="M")), "2026-01"),
                (pd.DataFrame({"a": range(50), "b": pd.date_range("2026-01-05", periods=50)}), "2026-01-05"),
                (polars.Series(pd.date_range("2026-01-05", periods=50).date.tolist()), "2026-01-05"),
            )
        ],
        (lambda x, y: fitted("linear").log_score(x, pd.date_range("2026-01-05", periods=50)), "^y: expected numbers"),
        (lambda x, y: fitted("linear").predict(x, "best"), "statistic: expected one of mean, median, mode, got 'best'"),
        (lambda x, y: fitted("linear").predict(np.c_[x, x]), "X has 2 features, but ScoreRegressor is expecting 1"),
    ],
)
def test_wrong_input_raises_a_value_error(call: Callable[[Any, Any], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*targets("linear", 50))


def test_truth_values_and_text_of_numbers_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    x = np.random.default_rng(0).normal(size=(60, 1))
    y = (x[:, 0] > 0.0).astype(float)
    expected = ScoreRegressor(**QUICK).fit(x, y).predict(x)
    for same in (y.astype(bool), pd.Series(y.astype(int).astype(str))):
        np.testing.assert_array_equal(ScoreRegressor(**QUICK).fit(x, same).predict(x), expected)


@pytest.mark.parametrize("seed", [0, 1])
def test_conditionals_follow_large_known_values(seed: int) -> None:
    random = np.random.default_rng(seed)
    x = np.append(random.normal(size=300), [3.7, -3.7])
    y = 3.0 * x + 0.3 * random.normal(size=302)
    regressor = ScoreRegressor(max_steps=400, random_state=seed).fit(x[:, None], y)
    np.testing.assert_allclose(regressor.predict([[3.5], [-3.5]]), [10.5, -10.5], atol=0.6)
    assert regressor.predict([[5.0]])[0] > 13.0  # the nonlinear part alone is bounded: 11.0 and 9.6


@pytest.mark.parametrize("seed", [0, 1])
def test_two_groups_far_apart_have_their_own_distributions(seed: int) -> None:
    random = np.random.default_rng(5)
    group = random.integers(0, 2, size=300)
    y = np.where(group, 98.0, 60.0) + np.where(group, 2.0, 6.0) * random.normal(size=300)
    found = ScoreRegressor(random_state=seed).fit(group[:, None].astype(float), y).predict_distribution([[0.0], [1.0]])
    np.testing.assert_allclose(found.mean(), [60.0, 98.0], atol=1.5)
    np.testing.assert_allclose(found.std(), [6.0, 2.0], rtol=0.4)


def test_numbers_far_from_few_values_count_as_missing_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    random = np.random.default_rng(0)
    dose = random.choice([0.0, 10.0, 20.0, 40.0, 80.0], 300)
    table = pd.DataFrame({"dose": dose, "x": random.normal(size=300)})
    regressor = ScoreRegressor(max_steps=20, random_state=0).fit(table, 0.1 * dose)
    rows = pd.DataFrame({"dose": [np.nan, 60.0, 200.0, 85.0, 80.0], "x": 0.0})
    with pytest.warns(UserWarning, match="column 'dose' has numbers far from its few values in the fitted rows"):
        found = regressor.predict(rows)
    assert found[:3].tolist() == [found[0]] * 3
    assert found[3] == found[4] != found[0]


def test_categories_that_no_fitted_row_has_count_as_missing_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    random = np.random.default_rng(0)
    names = random.choice(["a", "b", "c"], 300)
    table = pd.DataFrame({"name": names, "x": random.normal(size=300)})
    rows = pd.DataFrame({"name": [None, "d", "a"], "x": 0.0})
    regressor = ScoreRegressor(max_steps=20, random_state=0).fit(table, (names == "a") + table["x"])
    with pytest.warns(UserWarning, match="column 'name' has categories that no fitted row has; they count as missing"):
        found = regressor.predict(rows)
    assert found[0] == found[1] != found[2]
    density = ScoreDensity(max_steps=20, n_estimators=1, random_state=0).fit(table)
    gaps = rows.assign(x=np.nan)
    with pytest.warns(UserWarning, match="column 'name' has categories that no fitted row has"):
        filled = density.impute(gaps, random_state=0)
    assert filled["name"].tolist()[1:] == ["d", "a"]
    assert filled["x"].notna().all()
