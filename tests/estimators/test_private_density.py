"""A private density: it learns from private statistics alone, with noise that no seed gives away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from arcsm.estimators import PrivateDensity, ScoreDensity
from small_tables import seed_private_noise, use_small_models

QUICK = {"max_steps": 5, "hidden_features": (8, 8), "random_state": 0}


@pytest.fixture(autouse=True)
def small_models_and_seeded_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    seed_private_noise(monkeypatch)


def rows_of(count: int) -> pd.DataFrame:
    random = np.random.default_rng(0)
    x = random.normal(size=count)
    return pd.DataFrame({"x": x, "kind": np.where(x + random.normal(size=count) > 0.0, "a", "b")})


def test_the_model_is_a_function_of_private_statistics_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[pd.DataFrame] = []
    monkeypatch.setattr(ScoreDensity, "fit", lambda _, X: seen.append(X))
    table = rows_of(3_000)
    PrivateDensity(1.0, **QUICK).fit(table)
    assert len(seen[0]) == 5_000
    assert not set(seen[0]["x"]) & set(table["x"])


def test_it_samples_scores_and_comes_back_from_files(tmp_path: Path) -> None:
    density = PrivateDensity(2.0, **QUICK).fit(rows_of(2_500))
    density.save(tmp_path / "model")
    again = PrivateDensity.load(tmp_path / "model")
    drawn = again.sample(50, random_state=1)
    pd.testing.assert_frame_equal(drawn, density.sample(50, random_state=1))
    assert again.score_samples(drawn).shape == (50,)
    assert (again.epsilon, again.rows_) == (2.0, density.rows_)
    assert r"differentially private\: epsilon 2\, delta 1e\-06" in (tmp_path / "model" / "README.md").read_text()


def test_arrays_come_back_as_they_are() -> None:
    rows = rows_of(2_500)[["x"]].to_numpy()
    assert isinstance(PrivateDensity(2.0, **QUICK).fit(rows).sample(3), np.ndarray)


def test_the_noise_comes_from_the_system_or_from_the_given_source(monkeypatch: pytest.MonkeyPatch) -> None:
    table, generator = rows_of(2_500), np.random.default_rng
    monkeypatch.setattr(ScoreDensity, "fit", lambda *_: None)
    unseeded = iter(range(9))  # what the system would give
    monkeypatch.setattr(np.random, "default_rng", lambda *seed: generator(*seed or (next(unseeded),)))
    first, second = (PrivateDensity(0.5, **QUICK).fit(table).rows_ for _ in range(2))
    assert next(unseeded) == 2  # each fit has asked once
    assert first != second
    first, second = (PrivateDensity(0.5, **QUICK).fit(table, noise=generator(1)).rows_ for _ in range(2))
    assert first == second


def test_rare_levels_are_not_in_the_types_of_other_libraries() -> None:
    kinds = pl.Series(["a", "b"] * 1_250 + ["secret"], dtype=pl.Enum(["a", "b", "secret"]))
    density = PrivateDensity(1.0, **QUICK).fit(pl.DataFrame({"kind": kinds, "x": np.arange(2_501) % 7}))
    drawn = density.sample(5)
    assert isinstance(drawn, pl.DataFrame)
    assert "secret" not in repr(drawn.schema)


def test_dates_as_objects_are_an_error() -> None:
    table = rows_of(300).assign(when=pd.period_range("2024-01", periods=300, freq="D"))
    with pytest.raises(ValueError, match="column 'when': private statistics need dates and durations of pandas"):
        PrivateDensity(1.0, **QUICK).fit(table)
