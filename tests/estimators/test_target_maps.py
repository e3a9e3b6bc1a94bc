"""Maps of targets: nonlinear where conditionals gain from it."""

from __future__ import annotations

import numpy as np
import pytest

from arcsm.estimators import ScoreRegressor
from arcsm.estimators.column_types import Column, Grid
from arcsm.estimators.continua import Power
from arcsm.estimators.encoder import Columns
from arcsm.estimators.target_maps import with_target_maps


def types(features: np.ndarray, targets: np.ndarray) -> list[type[Column]]:
    """Return the types of targets ``(N, T)`` as columns, then as targets of features ``(N, F)``."""
    table = np.column_stack([features, targets])
    columns = Columns.infer(table)
    found = with_target_maps(columns, columns.encode(table), targets)
    assert found.kinds[: features.shape[1]] == columns.kinds[: features.shape[1]]
    return [type(kind) for kind in (*columns.kinds[features.shape[1] :], *found.kinds[features.shape[1] :])]


def rare_group(seed: int, n: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """Return features and a target with three groups. One has three of a hundred rows, whose targets are far higher."""
    random = np.random.default_rng(seed)
    group, x = random.choice(3, n, p=[0.57, 0.40, 0.03]), random.normal(size=n)
    mean = np.select([group == 0, group == 1], [10.0 + 2.0 * x, 20.0 - x], 60.0 + 5.0 * x)
    spread = np.select([group == 0, group == 1], [1.0, 3.0], 2.0)
    return np.column_stack([group, x]), np.round(mean + spread * random.normal(size=n), 2)


def test_skewness_that_features_explain_needs_no_nonlinear_map() -> None:
    x, y = rare_group(0)
    assert types(x, y[:, None]) == [Power, Grid]


@pytest.mark.slow
def test_a_rare_group_has_its_own_width() -> None:
    """One nonlinear map of the target made it three to four times as wide."""
    x, y = rare_group(1)
    regressor = ScoreRegressor(random_state=0).fit(x, y)
    predicted = regressor.predict_distribution([[2.0, -1.0], [2.0, 0.0], [2.0, 1.0]])
    np.testing.assert_allclose(predicted.mean(), [55.0, 60.0, 65.0], atol=2.5)
    assert (predicted.std() < 4.0).all()
