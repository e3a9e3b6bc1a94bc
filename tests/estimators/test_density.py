"""The density estimator: log densities, samples, imputation and conditional draws."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.base import clone

from arcsm.estimators import ScoreDensity, density
from arcsm.estimators.ensemble import Ensemble
from small_tables import QUICK, correlated_table, mixed_table, normal, use_small_models


def test_samples_have_the_format_of_the_data_frame() -> None:
    table = mixed_table()
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


def test_the_density_of_a_skewed_column_integrates_to_one() -> None:
    rng = np.random.default_rng(0)
    x = np.exp(rng.normal(1.0, 0.5, (3000, 1)))
    density = ScoreDensity(max_steps=400, n_estimators=1, random_state=0).fit(x)
    grid = np.linspace(0.01, 40.0, 4000)[:, None]
    found = density.score_samples(grid)
    assert np.trapezoid(np.exp(found), grid[:, 0]) == pytest.approx(1.0, abs=0.01)
    truth = stats.lognorm(0.5, scale=math.e).logpdf(x[:, 0])
    assert density.score(x) == pytest.approx(truth.mean(), abs=0.05)


def test_the_density_of_integers_is_their_probability() -> None:
    rng = np.random.default_rng(0)
    x = rng.choice(4, p=[0.5, 0.3, 0.15, 0.05], size=(3000, 1)).astype(float)
    density = ScoreDensity(max_steps=600, n_estimators=1, random_state=0).fit(x)
    found = np.exp(density.score_samples(np.arange(4.0)[:, None]))
    np.testing.assert_allclose(found, [0.5, 0.3, 0.15, 0.05], atol=0.05)


def test_samples_of_a_skewed_column_stay_in_range() -> None:
    x = np.random.default_rng(0).gamma(0.3, size=(800, 1))
    density = ScoreDensity(max_steps=200, n_estimators=1, random_state=0).fit(x)
    sample = np.asarray(density.sample(3000))
    assert sample.max() <= 2.0 * x.max()
    assert sample.mean() == pytest.approx(x.mean(), rel=0.25)


def test_missing_values_are_filled_from_known_ones() -> None:
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
    with pytest.raises(ValueError, match="row 1, column 'a', but the training rows have no missing values"):
        density.score_samples(gaps)
    assert bool(np.isfinite(clone(density).set_params(missing=True, max_steps=20).fit(table).score_samples(gaps)).all())


def test_discrete_values_are_filled_with_values_on_their_grid() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, 600).astype(float)
    table = np.column_stack([x, 2.0 * x + 5.0])
    density = ScoreDensity(max_steps=400, n_estimators=1, random_state=0).fit(table)
    gaps = table[:40].copy()
    gaps[:, 1] = np.nan
    np.testing.assert_array_equal(density.impute(gaps)[:, 1], table[:40, 1])


def test_missing_values_are_filled_with_the_centre_of_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    numbers = np.random.default_rng(0).permutation(np.arange(120) % 12)
    table = pd.DataFrame({"whole": numbers, "tenths": numbers / 10, "city": np.array(["a", "b", "b"])[numbers % 3]})
    fitted = ScoreDensity(**QUICK, missing=True).fit(table)
    draws = torch.tensor([[[0.0, 0.0, 1.0], [10.0, 10.0, 0.0], [11.0, 11.0, 0.0]]]).double()

    def fixed(*_: object) -> tuple[torch.Tensor, torch.Tensor]:
        return draws, torch.tensor([[0.4, 0.3, 0.3]]).double()

    monkeypatch.setattr(Ensemble, "sample_missing", fixed)
    filled = fitted.impute(pd.DataFrame({"whole": [np.nan], "tenths": [np.nan], "city": [None]}))
    assert filled.iloc[0].tolist() == [6, 0.6, "b"]  # 6.3 on each grid, and the category of weight 0.6
    assert filled["whole"].dtype == table["whole"].dtype


def test_conditions_outside_the_training_values_raise() -> None:
    density = ScoreDensity(**QUICK).fit(mixed_table(120))
    for column, value in (("city", "nowhere"), ("visits", 1.5), ("visits", 1000), ("kind", "other")):
        with pytest.raises(ValueError, match=f"values: column '{column}' does not contain"):
            density.conditional([column], [value])
    rows = density.conditional(["city", "kind"], ["north", "same"], draws=5)
    assert isinstance(rows, pd.DataFrame)
    assert set(rows["city"]) == {"north"}


def test_conditions_that_never_occur_together_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    zone = np.arange(120) % 4
    table = pd.DataFrame({"city": np.array(["Oslo", "Rome"])[zone // 2], "zone": zone, "a": normal(120)})
    fitted = ScoreDensity(**QUICK).fit(table)
    with pytest.warns(UserWarning, match="city = 'Oslo' and zone = 3 never occur together in the fitted rows"):
        fitted.conditional(["a", "city", "zone"], [0.0, "Oslo", 3], draws=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.conditional(["a", "city", "zone"], [0.0, "Rome", 3], draws=20)


def test_conditional_draws_are_distinct(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    drawn = ScoreDensity(**QUICK).fit(correlated_table(300)).conditional(["city"], ["Rome"], draws=100)
    assert not drawn.duplicated().any()


def test_conditional_draws_come_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    monkeypatch.setattr(density, "_CONDITIONAL_DRAWS_PER_BATCH", 7)
    drawn = ScoreDensity(**QUICK).fit(correlated_table(300)).conditional(["city"], ["Rome"], draws=30)
    assert len(drawn) == 30
    assert (drawn["city"] == "Rome").all()
    assert not drawn.duplicated().any()


def test_few_distinct_conditional_draws_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    fitted = ScoreDensity(**QUICK).fit(correlated_table(300))
    sample_missing = Ensemble.sample_missing

    def unequal(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        candidates, weights = sample_missing(*arguments)
        weights = torch.zeros_like(weights)
        weights[:, :3] = 1.0 / 3.0
        return candidates, weights

    monkeypatch.setattr(Ensemble, "sample_missing", unequal)
    with pytest.warns(UserWarning, match="only about 3 of the 100 draws are distinct"):
        drawn = fitted.conditional(["city"], ["Rome"], draws=100)
    assert len(drawn.drop_duplicates()) == 3
