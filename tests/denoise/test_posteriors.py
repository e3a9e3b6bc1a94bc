"""One-dimensional posteriors against brute force on a grid."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, LogisticMixtureHead, NoiseLadder
from arcsm.denoise import GaussianNoise, particle_filter, posterior
from small_models import MakeModel

FLOAT64 = torch.float64
_ESTIMATES: tuple[Literal["mean", "median"], ...] = ("mean", "median")


def logistic_mixture_model() -> AutoregressiveModel:
    """Return one dimension with weights 0.3 and 0.7, means -1 and 1, scales 0.1 and 0.3."""
    head = LogisticMixtureHead(1, components=2).double()
    raw = torch.log(torch.expm1(torch.tensor([0.1, 0.3], dtype=FLOAT64).log() + 7.0)) - 7.0
    with torch.no_grad():
        head.parameters_of.weight.zero_()
        head.parameters_of.bias.copy_(torch.cat([torch.tensor([0.3, 0.7]).log(), torch.tensor([-1.0, 1.0]), raw]))
    return AutoregressiveModel(MADE(1, 1, ()), head).double()


def grid_posterior(log_prior: Tensor, x: Tensor, y: float, sigma: float) -> tuple[float, float, float]:
    """Return mean, median and log evidence on a grid ``x``."""
    log_joint = log_prior - 0.5 * ((y - x) / sigma) ** 2 - math.log(sigma * math.sqrt(2.0 * math.pi))
    mass = (log_joint - log_joint.max()).exp() * (x[1] - x[0])
    below = mass.cumsum(0) - 0.5 * mass
    median = np.interp(0.5, (below / mass.sum()).numpy(), x.numpy())
    return float((mass * x).sum() / mass.sum()), float(median), float(mass.sum().log() + log_joint.max())


@pytest.mark.parametrize(("y", "sigma"), [(-0.9, 0.05), (0.35, 0.4), (4.0, 2.0)])
def test_posterior_of_a_mixture_against_brute_force(y: float, sigma: float) -> None:
    model, x = logistic_mixture_model(), torch.linspace(-12.0, 12.0, 20_001, dtype=FLOAT64)
    mean, median, log_evidence = grid_posterior(model.log_prob(x[:, None]).detach(), x, y, sigma)
    row, noise = torch.tensor([[y]], dtype=FLOAT64), GaussianNoise(sigma)
    assert posterior(model, row, noise, tol=1e-7).item() == pytest.approx(mean, abs=1e-5)
    assert posterior(model, row, noise, "median", tol=1e-7).item() == pytest.approx(median, abs=1e-4)
    found = particle_filter(model, row, noise, count=1, tol=1e-7)
    assert found.log_evidence.item() == pytest.approx(log_evidence, abs=1e-5)


@pytest.mark.parametrize(("method", "tolerance", "sigma"), [("quadrature", 1e-4, 1.0), ("flow", 0.02, 0.3)])
def test_posterior_of_a_score_against_brute_force(
    make_model: MakeModel, ladder: NoiseLadder, method: str, tolerance: float, sigma: float
) -> None:
    model = make_model(features=1, noise=ladder, strength=2.0)
    x = torch.linspace(-8.0, 8.0, 2001, dtype=FLOAT64)
    log_prior = model.log_prob(x[:, None], method=method)
    y, noise = torch.tensor([[-1.5], [0.2], [2.5]], dtype=FLOAT64), GaussianNoise(sigma)
    exact = torch.tensor([grid_posterior(log_prior, x, float(value), sigma) for value in y[:, 0]], dtype=FLOAT64)
    options: dict[str, Any] = {"method": method, "tol": 1e-6}
    mean, median = (posterior(model, y, noise, estimate, **options)[:, 0] for estimate in _ESTIMATES)
    evidence = particle_filter(model, y, noise, count=1, **options).log_evidence
    torch.testing.assert_close(torch.stack([mean, median, evidence], 1), exact, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("sigma", [1e-3, 0.2])
def test_narrow_noise_and_outliers_through_the_flow(make_model: MakeModel, ladder: NoiseLadder, sigma: float) -> None:
    model, noise = make_model(features=1, noise=ladder, strength=2.0), GaussianNoise(sigma)
    y = torch.tensor([[-1.5], [0.2], [2.5], [9.0], [40.0]], dtype=FLOAT64)
    means, medians = (posterior(model, y, noise, estimate)[:, 0] for estimate in _ESTIMATES)
    evidence = particle_filter(model, y, noise, count=1).log_evidence
    for row, mean in enumerate(means):  # where the noise is narrow, a grid around the mean covers the posterior
        x = torch.linspace(float(mean) - 9.0 * sigma, float(mean) + 9.0 * sigma, 1501, dtype=FLOAT64)
        exact = grid_posterior(model.log_prob(x[:, None]), x, float(y[row, 0]), sigma)
        assert float(mean) == pytest.approx(exact[0], abs=0.02 * sigma)
        assert float(medians[row]) == pytest.approx(exact[1], abs=0.02 * sigma)
        assert float(evidence[row]) == pytest.approx(exact[2], abs=0.02)
