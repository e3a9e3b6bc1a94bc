"""What estimators share: the checks of scikit-learn, dtypes, wrong input, held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from arcsm.estimators import ScoreDensity, ScoreImputer, ScoreOutlierDetector
from small_tables import QUICK, correlated_table, mixed_table, use_small_models


@parametrize_with_checks([ScoreOutlierDetector(**{**QUICK, "max_steps": 2})])
def test_a_detector_passes_the_checks_of_scikit_learn(
    estimator: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([ScoreDensity(**QUICK), ScoreImputer(**QUICK)])
def test_other_estimators_pass_the_checks_of_scikit_learn(
    estimator: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    check(estimator)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: ScoreDensity(**{**QUICK, "n_estimators": 0}).fit(x),
            "n_estimators: expected a whole number of at least 1",
        ),
        (lambda x: ScoreOutlierDetector(contamination=0.7, **QUICK).fit(x), "contamination: expected"),
        (lambda x: ScoreDensity(**QUICK).fit(np.c_[x, np.full(len(x), np.nan)]), "column 2 holds nothing but missing"),
        (lambda x: ScoreDensity(**QUICK).fit(pd.DataFrame({"a": [1.0, np.inf, 2.0]})), "column 'a', row 2"),
        (
            lambda x: ScoreDensity(**QUICK).fit(pd.DataFrame({"n": 2**62 + np.arange(40), "x": x[:, 0]})),
            "has integers most of which double precision cannot distinguish",
        ),
        (lambda x: ScoreDensity(**QUICK).fit(x).quantile(np.full((3, 1), 0.5)), r"U: expected shape \(N, 2\)"),
    ],
)
def test_wrong_input_raises_a_value_error(call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0).normal(size=(40, 2)))


def test_data_frames_of_many_dtypes_are_fitted_and_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    table = mixed_table(120)
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
    with pytest.raises(ValueError, match="'who' has categories that differ in more than half of the rows"):
        ScoreDensity(**QUICK).fit(table.assign(who=[f"n{index}" for index in range(120)]))


def test_text_among_numbers_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    random = np.random.default_rng(0)
    few, many = random.integers(0, 4, 80).astype(object), random.normal(size=80).astype(object)
    few[3] = many[3] = "oops"
    with pytest.warns(UserWarning, match="column 'few' has text among numbers, such as 'oops' in row 3"):
        ScoreDensity(**QUICK).fit(pd.DataFrame({"few": few, "z": random.normal(size=80)}))
    with pytest.raises(ValueError, match="column 'many' has text among numbers, such as 'oops' in row 3; mend it"):
        ScoreDensity(**QUICK).fit(pd.DataFrame({"many": many, "z": random.normal(size=80)}))


def test_a_changed_constant_lowers_the_score() -> None:
    x = np.column_stack([np.random.default_rng(0).normal(size=100), np.full(100, 3.0)])
    detector = ScoreOutlierDetector(**QUICK).fit(x)
    other = x[:1].copy()
    other[0, 1] = 4.0
    same, changed = detector.score_samples(np.concatenate([x[:1], other]))
    assert same - changed == pytest.approx(math.log(101.0), abs=1e-6)
    constant = ScoreDensity(**QUICK).fit(np.full((20, 2), 3.0))
    np.testing.assert_array_equal(constant.sample(4), np.full((4, 2), 3.0))


def test_columns_far_from_zero_keep_their_precision() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 1))
    near = ScoreDensity(**QUICK).fit(x)
    far = ScoreDensity(**QUICK).fit(1.7e9 + 1e-3 * x)
    np.testing.assert_allclose(far.score_samples(1.7e9 + 1e-3 * x), near.score_samples(x) - math.log(1e-3), atol=0.02)


def test_extreme_values_are_outliers() -> None:
    x = np.random.default_rng(0).gamma(2.0, size=(300, 2)) ** 0.4
    detector = ScoreOutlierDetector(**QUICK).fit(x)
    for value in (1e3, 1e60, 1e308, -1e308):
        assert detector.score_samples([[value, 1.0]])[0] < detector.fitted_scores_.min()
    assert bool(np.isfinite(ScoreDensity(**QUICK).fit(x).impute([[1e300, np.nan]])).all())


def test_rows_with_rare_values_are_not_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    table = correlated_table(400)
    place = int(ScoreDensity(**QUICK).fit(table).held_out_rows_[5])
    table["rare"] = np.arange(400) == place
    table["gone"] = np.where(np.arange(400) == place, 2.5, np.where(np.arange(400) == place - 1, 3.5, np.nan))
    density = ScoreDensity(**QUICK).fit(table)
    assert place not in density.held_out_rows_
    assert 55 < len(density.held_out_rows_) < 60
