"""Estimators on messy tables: mixed types, constants, grids, extreme values and interrupted fits."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError

from arcsm.estimators import ScoreDensity, ScoreOutlierDetector
from small_tables import QUICK, normal, use_small_models


@pytest.fixture(autouse=True)
def small_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)


def test_values_that_all_have_another_type_warn() -> None:
    table = pd.DataFrame({"z": normal(60), "t": np.arange(60) % 2 == 0})
    density = ScoreDensity(**QUICK).fit(table)
    with pytest.warns(UserWarning, match="'t': none of its values occurs .* expected values of type bool, got str"):
        density.score_samples(table.astype({"t": object}).assign(t=lambda frame: frame["t"].map(str)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density.score_samples(table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(a="p", b="q"), r"column 'a', row 1: expected a number, got 'p'; column 'b', row 1: .*'q'"),
        (lambda t: t.assign(a=[[1]] * 60, b=2.0j), "column 'a' holds lists.*; column 'b' holds complex"),
        (lambda t: t.assign(more=1.0, extra=2.0), r"unseen at fit time:\n- extra\n- more"),
        (lambda t: t[["c"]], r"now missing:\n- a\n- b"),
    ],
)
def test_all_wrong_columns_are_named(change: Any, message: str) -> None:
    table = pd.DataFrame({"a": normal(60), "b": normal(60, 1), "c": np.arange(60) % 2})
    detector = ScoreOutlierDetector(**QUICK).fit(table)
    with pytest.raises(ValueError, match=message):
        detector.predict(change(table))


def test_all_columns_that_cannot_be_fitted_are_named() -> None:
    table = pd.DataFrame({"e": np.nan, "a": normal(60), "f": [None] * 60})
    with pytest.raises(ValueError, match=r"^column 'e' holds nothing but missing values; leave .* \(also 'f'\)$"):
        ScoreDensity(**QUICK).fit(table)
    names = [f"n{index}" for index in range(60)]
    table = pd.DataFrame({"i": names, "a": normal(60), "j": names, "k": np.where(np.arange(60) % 2, 1e308, -1e308)})
    with pytest.raises(ValueError, match=r"^column 'i' has categories .* \(also 'j'\); column 'k' has values from"):
        ScoreDensity(**QUICK).fit(table)
    numbered = pd.DataFrame({0: normal(60), 1: normal(60, 1)})
    with pytest.raises(ValueError, match=r"got \[0, 2\] \(missing 1; unexpected 2\)"):
        ScoreDensity(**QUICK).fit(numbered).score_samples(numbered.rename(columns={1: 2}))


def test_weights_of_rows_are_rejected() -> None:
    with pytest.raises(TypeError, match="fit: sample_weight is not supported; every row counts alike"):
        ScoreDensity(**QUICK).fit(normal(60)[:, None], sample_weight=np.ones(60))
    with pytest.raises(TypeError, match="fit: unexpected arguments weights"):
        ScoreDensity(**QUICK).fit(normal(60)[:, None], weights=np.ones(60))


@pytest.mark.parametrize("dtype", ["int8", "uint16", "Int64"])
def test_whole_numbers_stay_within_their_type(dtype: str) -> None:
    limit = float(np.iinfo(dtype.lower()).max)
    values = limit - np.random.default_rng(0).exponential(0.2 * limit, 200).clip(0, 0.8 * limit)
    if dtype.lower().startswith("u"):
        values = limit - values  # at the lower end, which is zero
    whole = np.array([int(value) for value in values.clip(0, np.nextafter(limit, 0))], dtype=object)
    table = pd.DataFrame({"a": pd.Series(whole).astype(dtype), "z": normal(200)})
    density = ScoreDensity(**QUICK).fit(table)
    drawn = density.sample(500)
    assert str(drawn["a"].dtype) == dtype
    assert int(drawn["a"].min()) >= 0.0 or dtype.lower().startswith("i")
    ends = density.quantile([[1e-4, 0.5], [0.9999, 0.5]])["a"]
    assert int(ends.iloc[0]) <= int(ends.iloc[1])


def test_impute_keeps_known_values() -> None:
    random = np.random.default_rng(0)
    fitted = pd.DataFrame(
        {"name": pd.Categorical(random.choice(["p", "q"], 80)), "whole": random.integers(0, 9, 80), "z": normal(80)}
    )
    fitted["key"] = pd.Series([2**53 + 1 + int(i) for i in random.integers(0, 9, 80)], dtype="Int64")
    density = ScoreDensity(**QUICK).fit(fitted)
    gaps = pd.DataFrame(
        {
            "name": pd.Categorical(["new", None, "p"]),
            "whole": [2.7, np.nan, 3.0],
            "z": [0.1, 0.2, np.nan],
            "key": pd.Series([2**53 + 1, None, 2**53 + 3], dtype="Int64"),
        }
    )
    filled = density.impute(gaps, estimate="median")
    assert not filled.isna().any(axis=None)
    for name in gaps:
        known = gaps[name].notna()
        assert filled[name][known].tolist() == gaps[name][known].tolist()
    assert float(filled["whole"][1]).is_integer()
    assert filled["name"][1] in ("p", "q")


def test_masked_values_are_missing_ones() -> None:
    values = np.random.default_rng(0).normal(size=(100, 2))
    values[:20, 0] = 1e6
    masked = np.ma.masked_equal(values, 1e6)
    density = ScoreDensity(**QUICK).fit(masked)
    assert density.sample(500, random_state=0).max() < 10.0
    assert abs(density.impute(masked, draws=10)[:20, 0]).max() < 10.0


def test_conditions_are_kept_exactly() -> None:
    table = pd.DataFrame({"f": normal(80), "k": np.arange(80) % 4, "n": np.array(["u", "v"])[np.arange(80) % 2]})
    given = ScoreDensity(**QUICK).fit(table).conditional({"f": 1.23456789, "k": 2, "n": "u"}, 5)
    assert given.to_numpy().tolist() == [[1.23456789, 2, "u"]] * 5
    assert given.dtypes.tolist() == table.dtypes.tolist()


def test_cdf_lies_in_the_open_interval_that_quantile_accepts() -> None:
    density = ScoreDensity(**QUICK).fit(np.c_[normal(60), normal(60, 1)])
    u = density.cdf(np.array([[1e9, 0.0], [-1e9, 0.0]]))
    assert ((u > 0.0) & (u < 1.0)).all()
    assert np.isfinite(density.quantile(u)).all()
    with pytest.raises(ValueError, match=r"U: expected values inside \(0, 1\)"):
        density.quantile([[0.0, 0.5]])
    with pytest.raises(ValueError, match=r"sample: expected whole numbers from 1 to \d+, got n_samples=0"):
        density.sample(0)


def test_an_interrupted_fit_keeps_the_previous_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    rows = np.c_[normal(60), normal(60, 1)]
    detector, new = ScoreOutlierDetector(**QUICK).fit(rows), ScoreDensity(**QUICK)
    before = detector.score_samples(rows + 50.0)
    monkeypatch.setattr("arcsm.estimators.table_training.fit", interrupted)
    for estimator in (detector, new):
        with pytest.raises(KeyboardInterrupt):
            estimator.fit(rows + 1.0)
    np.testing.assert_array_equal(detector.score_samples(rows + 50.0), before)
    with pytest.raises(NotFittedError):
        new.score_samples(rows)


def test_results_for_a_frame_have_its_index() -> None:
    table = pd.DataFrame({"a": normal(90), "b": normal(90, 1)}, index=pd.RangeIndex(1000, 1090))
    detector = ScoreOutlierDetector(**QUICK).fit(table)
    odd = table.iloc[[5, 7]]
    low, high = detector.expected(odd)
    for found in (low, high, detector.all_scores(odd), detector.explain(odd)):
        assert found.index.tolist() == [1005, 1007]
    assert ((odd > high) | (odd <= high)).all(axis=None)
    explained = detector.explain(odd)
    assert explained.columns.tolist() == ["a", "b"]
    np.testing.assert_allclose(explained.sum(axis=1), detector.score_samples(odd))
    np.testing.assert_array_equal(explained, detector.explain(odd.to_numpy()))
    top = detector.top_contributions(odd, columns=2)
    assert top.index.tolist() == [1005, 1005, 1007, 1007]
    assert top["row"].tolist() == [0, 0, 1, 1]
