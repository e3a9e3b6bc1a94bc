"""Hints of a forest: what they add, what they do not tell, and regressors without them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest

from arcsm.estimators import ScoreRegressor, hinted_density
from arcsm.estimators.column_types import Array
from arcsm.estimators.density_estimator import DensityEstimator
from arcsm.estimators.encoder import Columns
from arcsm.estimators.forest import Forest
from small_tables import QUICK, use_small_models
from small_targets import ROUGH, targets, use_one_model


def test_hints_do_not_tell_the_target_of_their_row() -> None:
    random = np.random.default_rng(0)
    x, y = random.integers(0, 2, size=(300, 2)).astype(float), random.normal(size=(300, 1))
    hints = hinted_density._out_of_fold(Columns.infer(x).kinds, x, y, 0)[:, 0]
    cell = x @ [1.0, 2.0]
    squares = [np.corrcoef(hints[cell == k], y[cell == k, 0])[0, 1] ** 2 for k in range(4)]
    assert np.mean(squares) < 0.25  # of 7 or 8 rows a fold; nearly 1 if each row were left out alone


def repeated_rows(copies: int = 1) -> tuple[Array, Array]:
    """Return rows of noise that occur twice, nearly, with equal targets, in columns that repeat."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(100, 4)), random.normal(size=100)
    twice = np.concatenate([x, x + 1e-3 * random.normal(size=x.shape)])
    return np.tile(twice, copies), np.concatenate([y, y])


@pytest.fixture(scope="module")
def remembering() -> ScoreRegressor:
    """Return a regressor of :func:`repeated_rows`."""
    with pytest.MonkeyPatch.context() as patch:
        use_one_model(patch, **ROUGH)
        return ScoreRegressor(random_state=0).fit(*repeated_rows())


def test_rows_that_nearly_repeat_are_remembered(remembering: ScoreRegressor, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = repeated_rows()
    hints = remembering._joint._hints_of(remembering.columns_.encode(x))
    assert np.corrcoef(hints[:, 0], y)[0, 1] > 0.9
    assert remembering.score(x, y) > 0.6
    monkeypatch.setattr(type(remembering._joint), "_hints_of", lambda self, x: np.full((len(x), 1), np.nan))
    assert np.isfinite(remembering.log_score(x, y))
    assert remembering.score(x, y) < 0.4


def test_regressors_without_hints_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    x, y = targets("linear", 100)
    with monkeypatch.context() as patch:
        patch.setattr(ScoreRegressor, "_density_class", DensityEstimator)
        regressor = ScoreRegressor(**QUICK).fit(x, y)
    regressor.save(tmp_path / "before.safetensors")
    found = ScoreRegressor.load(tmp_path / "before.safetensors")
    np.testing.assert_array_equal(found.predict(x), regressor.predict(x))


def test_hints_need_features_and_targets_that_vary(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    x, y = targets("linear", 60)
    assert ScoreRegressor(**QUICK).fit(np.ones_like(x), y)._joint._hint_count == 0
    x, y = targets("linear", 120)
    both = ScoreRegressor(**QUICK).fit(x, np.stack([y, np.ones_like(y)], 1))
    assert both._joint._hint_count == 2
    assert both.predict(x)[:, 1].tolist() == [1.0] * 120


@pytest.mark.slow
def test_noise_is_predicted_as_noise() -> None:
    random, rows = np.random.default_rng(0), 60
    x, y = random.integers(0, 2, size=(rows, 1)).astype(float), random.normal(size=rows)
    regressor = ScoreRegressor(random_state=0).fit(x, y)
    new = random.normal(size=2_000)
    score = regressor.log_score(random.integers(0, 2, size=(2_000, 1)).astype(float), new)
    assert score == pytest.approx(-0.5 * np.log(2.0 * np.pi * np.e), abs=0.08)


def test_hints_that_do_not_help_held_out_rows_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    monkeypatch.setattr(hinted_density, "_out_of_fold", lambda kinds, x, y, seed: y)  # told the targets
    monkeypatch.setattr(Forest, "predict", lambda self, x: np.random.default_rng(0).normal(size=(len(x), 1)))
    x, y = targets("linear", 150)
    regressor = ScoreRegressor(**{**QUICK, "max_steps": 150}).fit(x, y)
    assert regressor._joint._hint_count == 1
    assert regressor._joint._forest is None  # type: ignore[attr-defined]
    monkeypatch.undo()
    regressor.save(tmp_path / "r.safetensors")
    np.testing.assert_array_equal(ScoreRegressor.load(tmp_path / "r.safetensors").predict(x), regressor.predict(x))


def test_a_forest_of_other_columns_is_not_read(remembering: ScoreRegressor, tmp_path: Path) -> None:
    remembering.save(tmp_path / "r.safetensors")
    assert ScoreRegressor.load(tmp_path / "r.safetensors")._joint._forest is not None  # type: ignore[attr-defined]
    changed, (x, y) = copy.deepcopy(remembering), repeated_rows(copies=2)
    changed._joint._forest = Forest.grow(Columns.infer(x).kinds, x, y[:, None], seed=0)  # type: ignore[attr-defined]
    changed.save(tmp_path / "r.safetensors")
    with pytest.raises(ValueError, match="a column for each feature, hint and target"):
        ScoreRegressor.load(tmp_path / "r.safetensors")
