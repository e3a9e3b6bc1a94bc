"""Small models for tests of predictions, which learn closed forms in seconds."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from arcsm.estimators import ScoreRegressor, density_estimator, hinted_density
from arcsm.estimators.table_config import TableConfig

_ACCURATE: dict[str, Any] = {
    "orders": 4, "context_features": 8, "hidden_features": (32,), "embedding_features": 32, "dropout": 0.0,
    "head_features": (32, 32), "sinusoids": 0, "sinusoid_decay": 1.0, "head_sinusoids": 0, "sigma_min": 0.1,
    "noise_levels": 8, "tolerance": 1e-3, "max_steps": 1200, "batch_size": 128, "learning_rate": 7e-3,
    "weight_decay": 1e-4,
}  # fmt: skip
#: Settings of a model that fits in less than a second and predicts better than a constant.
ROUGH: dict[str, Any] = {
    "orders": 1, "hidden_features": (16, 16), "embedding_features": 16, "head_features": (16, 16), "sigma_min": 0.3,
    "noise_levels": 4, "tolerance": 1e-2, "max_steps": 150, "batch_size": 64, "learning_rate": 2e-2,
}  # fmt: skip

Array = NDArray[np.float64]


def use_one_model(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Make estimators fit one model, whatever the table."""
    config = TableConfig(**{**_ACCURATE, **changes})
    monkeypatch.setattr(TableConfig, "for_table", classmethod(lambda *_: config))
    monkeypatch.setattr(density_estimator, "_MIN_ROWS_FOR_SELECTION", 10**9)
    monkeypatch.setattr(hinted_density, "_TREES_OF_FOLD", 10)


def targets(name: str, count: int = 2000, seed: int = 0) -> tuple[Array, Array]:
    """Return one feature, and a target or two that depend on it in a known way."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=count)
    noise = rng.normal(size=(2, count))
    y = {
        "linear": 2.0 * x + noise[0],
        "widening": np.exp(0.5 * x) * noise[0],
        "skewed": np.exp(0.5 * x + 0.5 * noise[0]),
        "spiked": np.where(noise[0] < x, 0.0, np.exp(0.5 * noise[1])),
        "steps": np.rint(10.0 + 3.0 * x + 3.0 * noise[0]),
        "bounded": np.floor(40.0 * stats.norm.cdf(0.5 * x + noise[0])),  # frequent at both ends, 0 and 39
        "few": 3.0 * ((x + noise[0] > 0.0) * 1.0 + (x + noise[0] > 1.0) * 2.0),  # 0, 3 or 9
        "two": np.stack([x + noise[0], noise[0] + noise[1]], 1),
        "constant": np.full(count, 4.0),
    }[name]
    return x[:, None], y


@cache
def fitted(name: str, max_steps: int = 1200) -> ScoreRegressor:
    """Return a regressor of :func:`targets`."""
    with pytest.MonkeyPatch.context() as patch:
        use_one_model(patch, max_steps=max_steps)
        return ScoreRegressor(random_state=0).fit(*targets(name))
