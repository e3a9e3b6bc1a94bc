"""The imputer: scikit-learn's checks, pipelines and frames, and what each estimate fills in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from arcsm.estimators import ScoreImputer
from small_tables import QUICK, correlated_table, use_small_models


@parametrize_with_checks([ScoreImputer(**QUICK)])
def test_the_imputer_passes_the_checks_of_scikit_learn(
    estimator: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    check(estimator)


def table_with_gaps() -> pd.DataFrame:
    table = correlated_table(200)
    table.index = pd.RangeIndex(1000, 1200)
    table.loc[1000:1019, "b"] = np.nan
    table.loc[1010:1029, "city"] = None
    return table


def test_frames_keep_their_form(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    table = table_with_gaps()
    filled = ScoreImputer(**QUICK).fit_transform(table)
    assert filled.index.equals(table.index)
    assert not filled.isna().any(axis=None)
    pd.testing.assert_series_equal(filled.dtypes, correlated_table(200).dtypes)
    pd.testing.assert_frame_equal(filled.iloc[30:], table.iloc[30:], check_dtype=False)
    native = polars.from_pandas(table)
    assert ScoreImputer(**QUICK).fit(native).transform(native).null_count().sum_horizontal().item() == 0


def test_the_imputer_works_in_pipelines_and_with_set_output(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    x = np.random.default_rng(0).normal(size=(80, 2))
    y = x.sum(1)
    x[:20, 1] = np.nan
    pipeline = make_pipeline(ScoreImputer(**QUICK), LinearRegression()).fit(x, y)
    assert np.isfinite(pipeline.predict(x)).all()
    imputer = ScoreImputer(**QUICK).set_output(transform="pandas").fit(x)
    assert list(imputer.transform(x).columns) == list(imputer.get_feature_names_out()) == ["x0", "x1"]


def test_estimates_come_from_the_draws_of_the_density(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    table = table_with_gaps()
    fitted = ScoreImputer(**QUICK).fit(table)
    for estimate in ("mean", "median", "mode"):
        found = fitted.set_params(estimate=estimate, draws=16).transform(table)
        expected = fitted.density_.impute(table, estimate=estimate, draws=16, random_state=0)
        pd.testing.assert_frame_equal(found, expected)
    drawn = fitted.set_params(estimate="draw").transform(table)
    pd.testing.assert_frame_equal(drawn, fitted.transform(table))
    assert drawn["b"].iloc[:20].std() > 0.8 * fitted.set_params(estimate="mean").transform(table)["b"].iloc[:20].std()
    assert not drawn.equals(fitted.set_params(estimate="draw", random_state=1).transform(table))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimate": "best"}, "estimate: expected one of mean, median, mode, draw, got 'best'"),
        ({"draws": 0}, "ScoreImputer: expected whole numbers from 1"),
        ({"max_steps": 0}, "max_steps: expected a whole number"),
    ],
)
def test_wrong_arguments_raise(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScoreImputer(**{**QUICK, **arguments}).fit(np.random.default_rng(0).normal(size=(20, 2)))
