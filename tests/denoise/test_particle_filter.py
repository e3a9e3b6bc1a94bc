"""The particle filter against the exact joint posterior of small models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from arcsm.denoise import (
    GaussianNoise,
    SaltAndPepper,
    WeightedCandidates,
    particle_filter,
    posterior,
    systematic_resampling,
)
from small_models import COEFFICIENTS, DEVIATIONS, OFFSETS, linear_gaussian_model, random_rows, seeded

FLOAT64 = torch.float64


def ndtr(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def joint_posterior(y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Return the exact posterior mean ``(N, D)`` and log p(y) ``(N,)`` of :func:`linear_gaussian_model`."""
    inverse = torch.linalg.inv(torch.eye(3, dtype=FLOAT64) - torch.tensor(COEFFICIENTS, dtype=FLOAT64))
    covariance = inverse @ torch.diag(torch.tensor(DEVIATIONS, dtype=FLOAT64).square()) @ inverse.T
    mean = inverse @ torch.tensor(OFFSETS, dtype=FLOAT64)
    noisy = covariance + sigma**2 * torch.eye(3, dtype=FLOAT64)
    log_evidence = torch.distributions.MultivariateNormal(mean, noisy).log_prob(y)
    return mean + (y - mean) @ torch.linalg.solve(noisy, covariance), log_evidence


def standard_error(found: WeightedCandidates) -> Tensor:
    """Return the standard error of the posterior mean if the candidates were independent, ``(*, D)``."""
    distance = found.candidates - found.mean().unsqueeze(-2)
    return (found.weights.unsqueeze(-1) * distance).square().sum(-2).sqrt()


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_it_approximates_the_exact_joint_posterior(threshold: float) -> None:
    y, sigma = random_rows(2), 0.8
    found = particle_filter(linear_gaussian_model(), y, GaussianNoise(sigma), 2000, seeded(), threshold=threshold)
    mean, log_evidence = joint_posterior(y, sigma)
    tolerance = 6.0 * standard_error(found)  # resampled candidates are slightly dependent
    assert tolerance.max() < 0.15
    assert bool(((found.mean() - mean).abs() < tolerance).all())
    torch.testing.assert_close(found.log_evidence, log_evidence, rtol=0.0, atol=0.06)
    greedy = posterior(linear_gaussian_model(), y, GaussianNoise(sigma))
    assert (greedy - mean)[:, 0].abs().max() > 2.0 * tolerance.max()  # later values inform earlier ones


def test_a_later_value_decides_whether_an_extreme_is_intact() -> None:
    slope, deviation, p, width = 0.9, 0.4, 0.3, 0.2
    model = linear_gaussian_model(((0.0, 0.0), (slope, 0.0)), (0.0, 0.0), (1.0, deviation))
    noise = SaltAndPepper(p, low=-1.0, high=1.0, width=width)
    y = torch.tensor([[-1.0, -0.9], [-1.0, 0.8]], dtype=FLOAT64)
    found = particle_filter(model, y, noise, count=20_000, generator=seeded())

    def normal(x: Tensor, variance: float) -> Tensor:
        return torch.exp(-0.5 * x.square() / variance) / math.sqrt(2.0 * math.pi * variance)

    later, both = y[:, 1], slope**2 + deviation**2
    true = (1.0 - p) * ndtr(-1.0 + width) * normal(later + slope, deviation**2)
    replaced = 0.5 * p * normal(later, both)
    kept = true / (true + replaced)
    mean = -kept + (1.0 - kept) * slope / both * later  # of a replaced value: its regression on the later one
    assert kept[0] > 0.7
    assert kept[1] < 0.05
    assert bool(((found.mean()[:, 0] - mean).abs() < 6.0 * standard_error(found)[:, 0]).all())
    evidence = torch.log((true + replaced) / width) + math.log1p(-p)
    torch.testing.assert_close(found.log_evidence, evidence, rtol=0.0, atol=0.04)


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (7, 1), (40, 2)])
def test_systematic_resampling_is_proportional_to_the_weights(count: int, seed: int) -> None:
    weights = torch.softmax(3.0 * torch.randn(3, count, generator=seeded(seed), dtype=FLOAT64), 1)
    kept = torch.nn.functional.one_hot(systematic_resampling(weights, seeded(seed)), count).sum(1)
    assert torch.equal(kept.sum(1), torch.full((3,), count))
    assert bool(((kept - count * weights).abs() < 1.0 + 1e-9).all())
    few = torch.nn.functional.one_hot(systematic_resampling(weights, seeded(seed), 5), count).sum(1)
    assert torch.equal(few.sum(1), torch.full((3,), 5))
    assert bool(((few - 5 * weights).abs() < 1.0 + 1e-9).all())
