"""The combination of outlier scores, on a real table with known outliers."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, GaussianHead, TrainConfig, fit
from arcsm.anomaly import Combination, outlier_scores
from arcsm.metrics import auroc


@pytest.fixture(scope="module")
def distances() -> dict[str, Tensor]:
    """Return the combined scores of held-out rows and of four kinds of outliers, under a model of a real table."""
    x = torch.from_numpy(load_breast_cancer().data)
    x = torch.log(x + 0.1 * x.mean(0))[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoregressiveModel(MADE(30, 8, ()), GaussianHead(8)).double()
    config = TrainConfig(objective="mle", steps=300, batch_size=64, learning_rate=1e-2, device="cpu", ema=0.99)
    fit(model, x[:300], config=config)
    mean, deviation, test = x[:300].mean(0), x[:300].std(0), x[430:]
    level = torch.randn(len(test), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = {
        "validation": x[300:430],
        "test": test,
        "shifted": test + 4.0 * deviation,
        "scaled": mean + 3.0 * (test - mean),
        "constant": mean + 0.3 * level * deviation,
        "too likely": mean.expand(len(test), -1),
    }
    tables = {name: outlier_scores(model, part) for name, part in rows.items()}
    combination = Combination().fit(tables["validation"])
    return {name: combination.score(table) for name, table in tables.items()}


def test_it_detects_unseen_kinds_of_outliers_and_no_held_out_inliers(distances: dict[str, Tensor]) -> None:
    for kind in ("shifted", "scaled", "constant", "too likely"):
        assert auroc(distances["test"], distances[kind]) > 0.95, kind
    assert auroc(distances["validation"], distances["test"]) == pytest.approx(0.5, abs=0.12)


def test_normal_columns_give_the_mahalanobis_distance() -> None:
    a, b = torch.randn(2, 20_000, dtype=torch.float64)
    combination = Combination().fit({"a": 5.0 + 3.0 * a, "b": a + 0.5 * b})
    at = torch.tensor([[0.5, 1.0], [-1.0, 0.3], [1.5, -1.0]], dtype=torch.float64)  # values of a and b
    found = combination.score({"a": 5.0 + 3.0 * at[:, 0], "b": at[:, 0] + 0.5 * at[:, 1]})
    torch.testing.assert_close(found, at.square().sum(1), rtol=0.12, atol=0.05)


def test_invalid_tables_raise() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Combination().fit({})
    with pytest.raises(ValueError, match="a is the same for nearly all rows"):
        Combination().fit({"a": torch.zeros(50)})
    with pytest.raises(ValueError, match="b contains NaN or infinity"):
        Combination().fit({"a": torch.rand(3), "b": torch.tensor([1.0, 2.0, math.inf])})


def test_scoring_needs_a_fit_and_all_columns() -> None:
    with pytest.raises(ValueError, match="not fitted"):
        Combination().score({"a": torch.rand(3)})
    fitted = Combination().fit({"a": torch.rand(9), "b": torch.rand(9)})
    with pytest.raises(ValueError, match="expected the columns a, b"):
        fitted.score({"a": torch.rand(3)})
