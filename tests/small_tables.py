"""Small tables, and small models of them, for the tests of estimators, reports and commands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead
from arcsm.cli import application
from arcsm.contexts.normal_moments import Moments
from arcsm.estimators import ScoreDensity, ScoreOutlierDetector
from arcsm.estimators.table_config import TableConfig

#: Arguments of an estimator that fits in a fraction of a second.
QUICK: dict[str, Any] = {"max_steps": 20, "n_estimators": 1, "hidden_features": (16,), "random_state": 0}


def mixed_table(count: int = 400) -> pd.DataFrame:
    """Return dependent columns of all types: continuous, discrete, categorical, Boolean and constant."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=count)
    return pd.DataFrame(
        {
            "height": 170.0 + 10.0 * x,
            "visits": rng.poisson(np.exp(0.5 + 0.5 * x)),
            "city": pd.Categorical(np.where(x > 0.3, "north", np.where(rng.random(count) < 0.5, "east", "west"))),
            "member": x + rng.normal(size=count) > 0.0,
            "kind": "same",
            "income": np.exp(10.0 + 0.4 * x),
        }
    )


def correlated_table(count: int, seed: int = 0) -> pd.DataFrame:
    """Return two correlated columns beside a categorical, a discrete and a constant one."""
    random = np.random.default_rng(seed)
    a = random.normal(size=count)
    return pd.DataFrame(
        {
            "a": a,
            "b": np.round(50.0 + 20.0 * (a + 0.2 * random.normal(size=count)), 2),
            "city": random.choice(["Rome", "Oslo"], count),
            "visits": random.poisson(3.0, count),
            "same": 7,
        }
    )


Scored = tuple[ScoreOutlierDetector, pd.DataFrame]


def detector_and_outliers(**settings: Any) -> Scored:
    """Return a detector and rows of which 3, 5, 7 and 9 are outliers by one column each."""
    table = mixed_table(500)
    rows = table.tail(60).reset_index(drop=True)
    rows.loc[3, "income"] = 1e7
    rows.loc[5, "visits"] = 60
    rows["city"] = rows["city"].astype(object)
    rows.loc[7, "city"] = "elsewhere"
    rows.loc[9, "kind"] = "other"
    settings = {"max_steps": 150, "n_estimators": 2, "random_state": 0, **settings}
    return ScoreOutlierDetector(**settings).fit(table.head(440)), rows


def use_small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make estimators fit one small model for a few steps, whatever the table."""
    config = TableConfig(1, 8, (16,), 16, 0.0, (16,), 0, 0.0, 0, 0.3, 4, 5e-2, 30, 64, 5e-3, 1e-2)
    monkeypatch.setattr(TableConfig, "for_table", classmethod(lambda *_: config))


def seed_private_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the noise of private statistics from a fixed seed, where the product lets the system choose one."""
    generator = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed=0: generator(seed))


def quick_density(table: pd.DataFrame) -> ScoreDensity:
    """Return a density with a small model that has hardly learned."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        return ScoreDensity(**QUICK).fit(table)


def run(*arguments: object) -> int:
    """Run a command and return its exit code."""
    return application.run([str(argument) for argument in arguments])


def normal(count: int, seed: int = 0) -> Any:
    """Draw standard normal numbers, ``(count,)``."""
    return np.random.default_rng(seed).normal(size=count)


def model_of_columns(*columns: str) -> AutoregressiveModel:
    """Return a small model of a table with these columns, with random weights."""
    torch.manual_seed(0)
    made, head = MADE(len(columns), 4, (8,)), ScoreHead(4, (8,))
    return AutoregressiveModel(made, head, NoiseLadder(1.0, 0.1, 4), metadata={"columns": list(columns)})


def random_moments(features: int) -> Moments:
    """Return random means, deviations and correlations of ``D`` dimensions in double precision."""
    factors = torch.randn(features, features, dtype=torch.float64)
    covariance = factors @ factors.T + 0.05 * torch.eye(features, dtype=torch.float64)
    deviation = covariance.diagonal().sqrt()
    mean = torch.randn(features, dtype=torch.float64)
    return Moments(mean, deviation, covariance / (deviation * deviation[:, None]))
