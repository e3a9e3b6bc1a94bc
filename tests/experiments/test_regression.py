"""Measures of predictive distributions, and the peers that predict them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from arcsm.experiments.comparisons import Array
from arcsm.experiments.regression import Split, quality
from arcsm.experiments.regressors import PROBABILITIES, Predicted


def normal(mean: Array, scale: float) -> Predicted:
    distribution = stats.norm(mean, scale)
    return Predicted(mean, distribution.ppf(PROBABILITIES[:, None]).T, distribution.cdf)


def rows(count: int, seed: int = 0) -> tuple[Array, Array]:
    """Return features and targets with noise of standard deviation 0.5."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, 2))
    return x, 3.0 * x[:, 0] + 0.5 * random.normal(size=count)


def test_the_measures_of_the_true_distribution_are_known() -> None:
    x, y = rows(20_000)
    data = Split(x, y, x, y, 0.001)
    found = quality(normal(3.0 * x[:, 0], 0.5), data)
    unit = math.sqrt(9.25)
    assert np.mean(found["nll"]) == pytest.approx(
        0.5 * math.log(2 * math.pi * math.e * 0.25) - math.log(unit), abs=0.02
    )
    assert np.mean(found["crps"]) == pytest.approx(0.5 / math.sqrt(math.pi) / unit, rel=0.02)
    assert found["rmse"] == pytest.approx(0.5 / unit, rel=0.02)
    assert found["coverage"] == pytest.approx(0.9, abs=0.01)
    for mean, scale in ((0.1 + 3.0 * x[:, 0], 0.5), (3.0 * x[:, 0], 0.7)):  # proper: others are worse
        other = quality(normal(mean, scale), data)
        assert np.mean(other["nll"]) > np.mean(found["nll"])
        assert np.mean(other["crps"]) > np.mean(found["crps"])


def test_a_density_is_the_mean_over_a_step() -> None:
    y = np.array([0.0, 1.0, 2.0])
    data = Split(np.zeros((3, 1)), y, np.zeros((3, 1)), y, 1.0)
    cdf = stats.rv_discrete(values=([0, 1, 2], [0.5, 0.25, 0.25])).cdf
    found = quality(Predicted(y, np.tile(PROBABILITIES, (3, 1)), cdf), data)
    assert found["nll"] == pytest.approx(-np.log(np.array([0.5, 0.25, 0.25]) * y.std()), abs=1e-5)
    assert quality(Predicted(y, np.tile(PROBABILITIES, (3, 1))), data)["nll"] is None
