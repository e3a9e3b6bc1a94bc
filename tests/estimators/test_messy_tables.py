"""Estimators on messy tables: mixed types, constants, grids, extreme values and interrupted fits."""

from __future__ import annotations

import decimal
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError

from arcsm.estimators import ScoreDensity, ScoreOutlierDetector, ScoreRegressor
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
    ("cells", "message"),
    [
        ([[1, 2], [3]], "lists, not single values"),
        ([{"a": 1}, {"a": 2}], "lists, not single values"),
        ([1.0 + 2.0j, 3.0], "complex numbers"),
    ],
)
def test_lists_and_complex_numbers_are_rejected(cells: Any, message: str) -> None:
    table = pd.DataFrame({"d": pd.Series(cells).repeat(30).reset_index(drop=True), "z": normal(60)})
    with pytest.raises(ValueError, match=f"column 'd' holds {message}"):
        ScoreDensity(**QUICK).fit(table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(a="p", b="q"), r"column 'a', row 1: expected a number, got 'p'; column 'b', row 1: .*'q'"),
        (lambda t: t.assign(b=[*t["b"].astype(str)[:9], "?", *t["b"][10:]]), "^column 'b', row 10: expected a number"),
        (lambda t: t.assign(a=np.inf, b=-np.inf), "column 'a', row .; .*column 'b', row "),
        (lambda t: t.assign(a=[[1]] * 60, b=2.0j), "column 'a' holds lists.*; column 'b' holds complex"),
        (lambda t: t.assign(more=1.0, extra=2.0), r"unseen at fit time:\n- extra\n- more"),
        (lambda t: t[["c"]], r"now missing:\n- a\n- b"),
        (
            lambda t: np.array([["p", "1", "2"], ["3", "q", "4"]]),
            "column 0, row 1: .*; column 1, row 2: expected a num",
        ),
    ],
)
def test_all_wrong_columns_are_named(change: Any, message: str) -> None:
    table = pd.DataFrame({"a": normal(60), "b": normal(60, 1), "c": np.arange(60) % 2})
    detector = ScoreOutlierDetector(**QUICK).fit(table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of names
        for method in (detector.predict, detector.explain, detector.expected):
            with pytest.raises(ValueError, match=message):
                method(change(table))


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


@pytest.mark.parametrize("kind", [ScoreDensity, ScoreOutlierDetector])
def test_weights_of_rows_are_rejected(kind: type[ScoreDensity]) -> None:
    with pytest.raises(TypeError, match="fit: sample_weight is not supported; every row counts alike"):
        kind(**QUICK).fit(normal(60)[:, None], sample_weight=np.ones(60))
    with pytest.raises(TypeError, match="fit: unexpected arguments weights"):
        kind(**QUICK).fit(normal(60)[:, None], weights=np.ones(60))


def test_decimals_are_numbers() -> None:
    table = pd.DataFrame({"d": [decimal.Decimal(f"{value:.3f}") for value in normal(60)], "z": normal(60, 1)})
    assert np.isfinite(ScoreDensity(**QUICK).fit(table).score_samples(table)).all()


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint16", "UInt32", "Int64"])
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
    with pytest.raises(ValueError, match="Input y contains NaN"):
        ScoreRegressor(**QUICK).fit(values[:, 1:], masked[:, 0])


def test_arrays_and_frames_can_be_mixed() -> None:
    x = np.c_[normal(60), normal(60, 1), np.full(60, 3.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of names
        gaps = x[:4].copy()
        gaps[[0, 1], [1, 2]] = np.nan
        by_array = ScoreDensity(**QUICK).fit(x)
        assert not by_array.impute(pd.DataFrame(gaps)).isna().any(axis=None)
        by_frame = ScoreDensity(**QUICK).fit(pd.DataFrame(x, columns=["a", "b", "c"]))
        filled = by_frame.impute(gaps)
    assert isinstance(filled, np.ndarray)
    assert np.isfinite(filled).all()
    assert filled[1, 2] == 3.0


def test_conditions_are_kept_exactly_or_rejected() -> None:
    table = pd.DataFrame({"f": normal(80), "k": np.arange(80) % 4, "n": np.array(["u", "v"])[np.arange(80) % 2]})
    density = ScoreDensity(**QUICK).fit(table)
    given = density.conditional({"f": 1.23456789, "k": 2, "n": "u"}, 5)
    assert given["f"].tolist() == [1.23456789] * 5
    assert given["k"].tolist() == [2] * 5
    assert given["n"].tolist() == ["u"] * 5
    assert given.dtypes.tolist() == table.dtypes.tolist()
    with pytest.raises(ValueError, match=r"column 'f' does not contain 20\.0"):
        density.conditional({"f": 20.0})
    with pytest.raises(TypeError, match="given: expected a mapping from columns to values, got list"):
        density.conditional(["f"])
    with pytest.raises(ValueError, match="conditional: expected whole numbers from 1 to 1048576, got draws=0"):
        density.conditional({"f": 1.0}, draws=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_estimators": "3"}, "n_estimators: expected a whole number of at least 1, or \"auto\", got '3'"),
        ({"n_estimators": 2.0}, "n_estimators"),
        ({"n_estimators": None}, "n_estimators"),
        ({"max_steps": 10.5}, "max_steps"),
        ({"hidden_features": "32"}, "hidden_features"),
        ({"hidden_features": 32}, "hidden_features"),
        ({"hidden_features": (16, 0)}, "hidden_features"),
    ],
)
def test_bad_arguments_are_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScoreDensity(**{**QUICK, **arguments}).fit(normal(60)[:, None])


def test_cdf_lies_in_the_open_interval_that_quantile_accepts() -> None:
    density = ScoreDensity(**QUICK).fit(np.c_[normal(60), normal(60, 1)])
    u = density.cdf(np.array([[1e9, 0.0], [-1e9, 0.0]]))
    assert ((u > 0.0) & (u < 1.0)).all()
    assert np.isfinite(density.quantile(u)).all()
    with pytest.raises(ValueError, match=r"U: expected values inside \(0, 1\)"):
        density.quantile([[0.0, 0.5]])
    with pytest.raises(ValueError, match=r"sample: expected whole numbers from 1 to \d+, got n_samples=0"):
        density.sample(0)
    with pytest.raises(ValueError, match="0 feature"):
        ScoreDensity(**QUICK).fit(pd.DataFrame(index=range(5)))


def test_a_constant_is_the_same_in_single_precision() -> None:
    table = pd.DataFrame({"c": np.full(60, 0.1), "z": normal(60)})
    density = ScoreDensity(**QUICK).fit(table)
    single = table.assign(c=table["c"].astype(np.float32))
    np.testing.assert_allclose(density.score_samples(single), density.score_samples(table))


def test_other_values_of_a_constant_integer_column_are_unlikely() -> None:
    table = pd.DataFrame({"day": np.full(60, 20230101), "z": normal(60)})
    detector = ScoreOutlierDetector(**QUICK).fit(table)
    found = detector.explain(table.head(3).assign(day=[20230101, 20230115, 20230102]))["day"]
    assert found[0] > -0.1
    assert (found[1:] < -4.0).all()


def test_samples_lie_on_the_grid_of_the_values() -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame({
        "milliseconds": 1.7e9 + random.integers(0, 1_000, 300) / 1_000,
        "eighths": 1e12 + random.integers(0, 8, 300) / 8,
        "tenths": (random.integers(0, 50, 300) / 10).astype(np.float32),
        "z": normal(300),
    })  # fmt: skip
    density = ScoreDensity(**QUICK).fit(table)
    drawn = density.sample(200)
    for name in ("eighths", "tenths"):
        assert set(drawn[name]) <= set(table[name])
    thousandths = (drawn["milliseconds"] - 1.7e9) * 1_000
    assert np.abs(thousandths - thousandths.round()).max() < 1e-3
    assert set(np.round(drawn["milliseconds"], 3)) == set(drawn["milliseconds"])


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


def test_missing_values_and_numbers_of_all_types_are_accepted() -> None:
    table = pd.DataFrame({"a": normal(60), "b": normal(60, 1)})
    density = ScoreDensity(**QUICK).fit(table)
    gaps = table.head(3).copy()
    gaps["a"] = pd.NA
    assert np.isfinite(pd.DataFrame(density.impute(gaps)).to_numpy(dtype=float)).all()
    for none in (None, pd.NA):
        with pytest.raises(ValueError, match="'a' expects a value, not a missing one"):
            density.conditional({"a": none})
    fractions = table.assign(a=[Fraction(place, 7) for place in range(60)])
    steps = {**QUICK, "max_steps": np.int64(5), "n_estimators": np.int64(1), "hidden_features": np.array([8])}
    assert np.isfinite(ScoreDensity(**steps).fit(fractions).score_samples(fractions)).all()
    dummies = pd.get_dummies(pd.Series(list("abc") * 20), sparse=True, dtype=int).assign(z=normal(60))
    assert set(np.unique(ScoreDensity(**QUICK).fit(dummies).sample(9)[list("abc")])) <= {0, 1}
    half = pd.DataFrame({"a": (60_000.0 * normal(200)).clip(-65_000, 65_000).astype(np.float16), "z": normal(200)})
    drawn = ScoreDensity(**QUICK).fit(half).sample(300)
    assert drawn["a"].dtype == np.float16
    assert np.isfinite(drawn["a"]).all()
    small = np.c_[1e-200 * normal(60), normal(60)]
    drawn = ScoreDensity(**QUICK).fit(small).sample(60)
    assert 1e-201 < np.std(drawn[:, 0] * 1e100) * 1e-100 < 1e-199


def test_tuples_are_names() -> None:
    density = ScoreDensity(**QUICK).fit(pd.DataFrame({"t": [("x", 1)] * 60, "z": normal(60)}))
    assert density.sample(2)["t"].tolist() == [("x", 1)] * 2


def test_values_too_far_apart_are_rejected() -> None:
    table = pd.DataFrame({"a": normal(60), "b": np.where(np.arange(60) % 2, 1e308, -1e308)})
    with pytest.raises(ValueError, match=r"column 'b' has values from -1e\+308 to 1e\+308, too far apart"):
        ScoreDensity(**QUICK).fit(table)
    with pytest.raises(ValueError, match=r"column 1 has values from -1e\+308"):
        ScoreDensity(**QUICK).fit(table.to_numpy())
    ids = 1_600_000_000_000_000_000 + np.arange(60)
    with pytest.raises(ValueError, match="column 'id' has integers most of which double"):
        ScoreDensity(**QUICK).fit(table.assign(b=normal(60), id=ids))
    ScoreDensity(**QUICK).fit(table.assign(b=normal(60), id=ids[0] + 512 * np.arange(60)))


def test_a_single_known_name_is_imputed() -> None:
    table = pd.DataFrame({"a": normal(80), "c": [None] * 79 + ["only"]})
    filled = ScoreDensity(**QUICK).fit(table).impute(table, draws=2)
    assert set(filled["c"]) == {"only"}


def test_results_for_a_frame_have_its_index() -> None:
    table = pd.DataFrame({"a": normal(90), "b": normal(90, 1)}, index=pd.RangeIndex(1000, 1090))
    detector = ScoreOutlierDetector(**QUICK).fit(table)
    odd = table.iloc[[5, 7]]
    low, high = detector.expected(odd)
    for found in (low, high, detector.all_scores(odd)):
        assert found.index.tolist() == [1005, 1007]
    assert ((odd > high) | (odd <= high)).all(axis=None)
    explained = detector.explain(odd)
    assert explained.index.tolist() == [1005, 1007]
    assert explained.columns.tolist() == ["a", "b"]
    np.testing.assert_allclose(explained.sum(axis=1), detector.score_samples(odd))
    np.testing.assert_array_equal(explained, detector.explain(odd.to_numpy()))
    top = detector.top_contributions(odd, columns=2)
    assert top.index.tolist() == [1005, 1005, 1007, 1007]
    assert top["row"].tolist() == [0, 0, 1, 1]
    assert isinstance(detector.expected(odd.to_numpy())[0], pd.DataFrame)
