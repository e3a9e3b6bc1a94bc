"""The imputer: pipelines and frames, and what each estimate fills in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from arcsm.estimators import ScoreImputer
from small_tables import QUICK, correlated_table, use_small_models


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
    ],
)
def test_wrong_arguments_raise(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScoreImputer(**{**QUICK, **arguments}).fit(np.random.default_rng(0).normal(size=(20, 2)))
