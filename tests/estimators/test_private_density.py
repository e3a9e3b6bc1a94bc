from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from arcsm.estimators import PrivateDensity, ScoreDensity

QUICK = {"max_steps": 5, "hidden_features": (8, 8), "random_state": 0}


def rows_of(count: int) -> pd.DataFrame:
    random = np.random.default_rng(0)
    x = random.normal(size=count)
    return pd.DataFrame({"x": x, "kind": np.where(x + random.normal(size=count) > 0.0, "a", "b")})


def test_the_model_is_a_function_of_private_statistics_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    fit = ScoreDensity.fit

    def fit_seen(self: ScoreDensity, X: pd.DataFrame) -> ScoreDensity:
        seen.append(X)
        return fit(self, X)

    monkeypatch.setattr(ScoreDensity, "fit", fit_seen)
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


def test_arrays_and_frames_of_polars_come_back_as_they_are() -> None:
    rows = rows_of(2_500)
    assert isinstance(PrivateDensity(2.0, **QUICK).fit(rows[["x"]].to_numpy()).sample(3), np.ndarray)
    assert isinstance(PrivateDensity(2.0, **QUICK).fit(pl.from_pandas(rows)).sample(3), pl.DataFrame)


def test_the_noise_does_not_depend_on_the_seed() -> None:
    table = rows_of(2_500)
    first, second = (PrivateDensity(0.5, **QUICK).fit(table).rows_ for _ in range(2))
    assert first != second
    first, second = (PrivateDensity(0.5, **QUICK).fit(table, noise=np.random.default_rng(1)).rows_ for _ in range(2))
    assert first == second


def test_rare_levels_are_not_in_the_types_of_other_libraries() -> None:
    kinds = pl.Series(["a", "b"] * 1_250 + ["secret"], dtype=pl.Enum(["a", "b", "secret"]))
    density = PrivateDensity(1.0, **QUICK).fit(pl.DataFrame({"kind": kinds, "x": np.arange(2_501) % 7}))
    drawn = density.sample(5)
    assert isinstance(drawn, pl.DataFrame)
    assert "secret" not in repr(drawn.schema)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, "epsilon: expected a positive number"),
        ({"delta": 1.0}, "delta: expected a number between 0 and 1"),
        ({"delta": 1e-3}, "delta: expected much less than one over the rows, about"),
    ],
)
def test_budgets_that_mean_nothing_are_errors(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrivateDensity(**{"epsilon": 1.0, **arguments}, **QUICK).fit(rows_of(2_500))


def test_dates_as_objects_are_an_error() -> None:
    table = rows_of(300).assign(when=pd.period_range("2024-01", periods=300, freq="D"))
    with pytest.raises(ValueError, match="column 'when': private statistics need dates and durations of pandas"):
        PrivateDensity(1.0, **QUICK).fit(table)
