"""The particle filter against the exact joint posterior of small models."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arcsm import NoiseLadder
from arcsm.denoise import (
    GaussianNoise,
    SaltAndPepper,
    WeightedCandidates,
    particle_filter,
    posterior,
    systematic_resampling,
)
from small_models import COEFFICIENTS, DEVIATIONS, OFFSETS, MakeModel, linear_gaussian_model, random_rows, seeded

FLOAT64 = torch.float64


def ndtr(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def joint_moments() -> tuple[Tensor, Tensor]:
    """Return mean and covariance of :func:`linear_gaussian_model`."""
    inverse = torch.linalg.inv(torch.eye(3, dtype=FLOAT64) - torch.tensor(COEFFICIENTS, dtype=FLOAT64))
    covariance = inverse @ torch.diag(torch.tensor(DEVIATIONS, dtype=FLOAT64).square()) @ inverse.T
    return inverse @ torch.tensor(OFFSETS, dtype=FLOAT64), covariance


def joint_posterior(y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Return the exact posterior mean ``(N, D)`` and log p(y) ``(N,)`` of :func:`linear_gaussian_model`."""
    mean, covariance = joint_moments()
    noisy = covariance + sigma**2 * torch.eye(3, dtype=FLOAT64)
    log_evidence = torch.distributions.MultivariateNormal(mean, noisy).log_prob(y)
    return mean + (y - mean) @ torch.linalg.solve(noisy, covariance), log_evidence


def standard_error(found: WeightedCandidates) -> Tensor:
    """Return the standard error of the posterior mean if the candidates were independent, ``(*, D)``."""
    distance = found.candidates - found.mean().unsqueeze(-2)
    return (found.weights.unsqueeze(-1) * distance).square().sum(-2).sqrt()


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
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


def test_order_and_units_are_respected() -> None:
    order, sigma = [2, 0, 1], 0.8
    model = linear_gaussian_model(order=order, shift=1.0, scale=3.0)
    y = random_rows(2)
    mean, log_evidence = joint_posterior(y[:, order], sigma)
    found = particle_filter(model, 3.0 * y + 1.0, GaussianNoise(3.0 * sigma), 2000, seeded())
    assert bool(((found.mean()[:, order] - 3.0 * mean - 1.0).abs() < 6.0 * standard_error(found)[:, order]).all())
    torch.testing.assert_close(found.log_evidence, log_evidence - 3.0 * math.log(3.0), rtol=0.0, atol=0.06)


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


def test_it_works_through_the_flow(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model, y = make_model(features=2, noise=ladder), torch.tensor([[0.5, -1.0]], dtype=FLOAT64)
    grid = torch.linspace(-5.0, 5.0, 61, dtype=FLOAT64)
    x = torch.cartesian_prod(grid, grid)
    log_joint = model.log_prob(x) - 0.5 * (y - x).square().sum(1) / 0.6**2 - 2.0 * math.log(0.6) - math.log(2 * math.pi)
    found = particle_filter(model, y, GaussianNoise(0.6), 300, seeded())
    mean = (torch.softmax(log_joint, 0)[:, None] * x).sum(0)
    assert bool(((found.mean()[0] - mean).abs() < 5.0 * standard_error(found)[0] + 0.01).all())
    evidence = torch.logsumexp(log_joint, 0) + 2.0 * math.log(grid[1] - grid[0])
    assert found.log_evidence.item() == pytest.approx(evidence.item(), abs=0.1)


@given(st.integers(1, 40), st.integers(0, 1000))
def test_systematic_resampling_is_proportional_to_the_weights(count: int, seed: int) -> None:
    weights = torch.softmax(3.0 * torch.randn(3, count, generator=seeded(seed), dtype=FLOAT64), 1)
    kept = torch.nn.functional.one_hot(systematic_resampling(weights, seeded(seed)), count).sum(1)
    assert torch.equal(kept.sum(1), torch.full((3,), count))
    assert bool(((kept - count * weights).abs() < 1.0 + 1e-9).all())
    few = torch.nn.functional.one_hot(systematic_resampling(weights, seeded(seed), 5), count).sum(1)
    assert torch.equal(few.sum(1), torch.full((3,), 5))
    assert bool(((few - 5 * weights).abs() < 1.0 + 1e-9).all())


def test_weights_are_equal_only_if_all_are_always_resampled() -> None:
    y, noise = random_rows(3), GaussianNoise(0.8)
    for threshold in (0.0, 0.5, 1.0):
        weights = particle_filter(linear_gaussian_model(), y, noise, 50, seeded(), threshold=threshold).weights
        torch.testing.assert_close(weights.sum(1), torch.ones(3, dtype=FLOAT64))
        assert bool((weights == weights[:, :1]).all()) == (threshold == 1.0)
