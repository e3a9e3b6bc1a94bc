"""Hints of a forest: what they add, what they do not tell, and regressors without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arcsm.estimators import ScoreRegressor, hinted_density
from arcsm.estimators.density_estimator import DensityEstimator
from arcsm.estimators.encoder import Columns
from arcsm.estimators.forest import Forest
from small_tables import QUICK, use_small_models
from small_targets import ROUGH, fitted, targets, use_one_model


def test_hints_do_not_tell_the_target_of_their_row() -> None:
    random = np.random.default_rng(0)
    x, y = random.integers(0, 2, size=(300, 2)).astype(float), random.normal(size=(300, 1))
    hints = hinted_density._out_of_fold(Columns.infer(x).kinds, x, y, 0)[:, 0]
    cell = x @ [1.0, 2.0]
    centred = [(values - values.mean()) for k in range(4) for values in (np.stack([hints, y[:, 0]], 1)[cell == k],)]
    squares = [np.corrcoef((one - one.mean(0)).T)[0, 1] ** 2 for one in centred]
    assert np.mean(squares) < 0.25  # of 7 or 8 rows a fold; nearly 1 if each row were left out alone


def test_rows_that_nearly_repeat_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_model(monkeypatch, **ROUGH)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(100, 4)), random.normal(size=100)
    twice = np.concatenate([x, x + 1e-3 * random.normal(size=x.shape)])
    regressor = ScoreRegressor(random_state=0).fit(twice, np.concatenate([y, y]))
    assert regressor.score(x, y) > 0.6
    monkeypatch.setattr(ScoreRegressor, "_density_class", DensityEstimator)
    without = ScoreRegressor(random_state=0).fit(twice, np.concatenate([y, y]))
    assert without.score(x, y) < 0.4


def test_without_its_hint_a_row_is_still_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = targets("linear", 500, seed=1)
    regressor = fitted("linear")
    hint = regressor._joint._hints_of(regressor.columns_.encode(x))
    assert np.corrcoef(hint[:, 0], y)[0, 1] > 0.8
    monkeypatch.setattr(type(regressor._joint), "_hints_of", lambda self, features: np.full((len(features), 1), np.nan))
    assert regressor.score(x, y) > 0.7  # of 0.8, the share of the variance that is not noise


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
    for features, target in ((np.ones_like(x), y), (x, np.ones_like(y))):
        assert ScoreRegressor(**QUICK).fit(features, target)._joint._hints == 0
    both = ScoreRegressor(**QUICK).fit(x, np.stack([y, np.ones_like(y)], 1))
    assert isinstance(both._joint, hinted_density.HintedDensity)
    assert isinstance(both._joint._forest, Forest)
    assert both._joint._forest.targets == 2
