"""Denoising against closed forms, brute force on a grid, and the exact joint posterior of small models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, Context, GaussianHead, LogisticMixtureHead, NoiseLadder, PixelCNNPP
from arcsm.cli import application
from arcsm.data import digits, read_images
from arcsm.denoise import (
    GaussianNoise,
    Particles,
    SaltAndPepper,
    langevin,
    particles,
    posterior,
    tweedie,
)
from conftest import MakeModel

FLOAT64 = torch.float64
COEFFICIENTS = ((0.0, 0.0, 0.0), (0.8, 0.0, 0.0), (-0.5, 1.2, 0.0))
OFFSETS, DEVIATIONS = (0.3, -0.2, 0.1), (1.0, 0.5, 0.3)


def gaussian_model(
    coefficients: Sequence[Sequence[float]] = COEFFICIENTS,
    offsets: Sequence[float] = OFFSETS,
    deviations: Sequence[float] = DEVIATIONS,
    noise: NoiseLadder | None = None,
    order: Sequence[int] | None = None,
    **units: Any,
) -> AutoregressiveModel:
    """x_i ~ N(offset_i + sum_j coefficient_ij x_j, deviation_i^2) in standardised units, i and j by position."""
    features = len(offsets)
    made, head = MADE(features, 2, (), order=order).double(), GaussianHead(2).double()
    layer: Any = made.layers[0]
    log_deviations = torch.tensor(deviations, dtype=FLOAT64).log()
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight.view(features, 2, features)[:, 0] = torch.tensor(coefficients, dtype=FLOAT64)
        layer.bias.view(features, 2)[:, 0] = torch.tensor(offsets, dtype=FLOAT64)
        layer.bias.view(features, 2)[:, 1] = (
            torch.log(torch.expm1(log_deviations + 7.0)) - 7.0
        )  # undoes the head's floor
        head.parameters_of.weight.copy_(torch.eye(2))
    return AutoregressiveModel(made, head, noise, **units).double()


def one_gaussian(mean: float = 0.3, deviation: float = 0.7, **options: Any) -> AutoregressiveModel:
    return gaussian_model(((0.0,),), (mean,), (deviation,), **options)


def two_logistics() -> AutoregressiveModel:
    """One dimension: weights 0.3 and 0.7, means -1 and 1, scales 0.1 and 0.3."""
    head = LogisticMixtureHead(1, components=2).double()
    raw = torch.log(torch.expm1(torch.tensor([0.1, 0.3], dtype=FLOAT64).log() + 7.0)) - 7.0
    with torch.no_grad():
        head.parameters_of.weight.zero_()
        head.parameters_of.bias.copy_(torch.cat([torch.tensor([0.3, 0.7]).log(), torch.tensor([-1.0, 1.0]), raw]))
    return AutoregressiveModel(MADE(1, 1, ()), head).double()


def joint_moments() -> tuple[Tensor, Tensor]:
    """Mean and covariance of :func:`gaussian_model`."""
    inverse = torch.linalg.inv(torch.eye(3, dtype=FLOAT64) - torch.tensor(COEFFICIENTS, dtype=FLOAT64))
    covariance = inverse @ torch.diag(torch.tensor(DEVIATIONS, dtype=FLOAT64).square()) @ inverse.T
    return inverse @ torch.tensor(OFFSETS, dtype=FLOAT64), covariance


def joint_posterior(y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Exact posterior mean ``(N, D)`` of :func:`gaussian_model` given Gaussian noise, and log p(y) ``(N,)``."""
    mean, covariance = joint_moments()
    noisy = covariance + sigma**2 * torch.eye(3, dtype=FLOAT64)
    log_evidence = torch.distributions.MultivariateNormal(mean, noisy).log_prob(y)
    return mean + (y - mean) @ torch.linalg.solve(noisy, covariance), log_evidence


def one_after_the_other(y: Tensor, sigma: float, order: Sequence[int] = (0, 1, 2)) -> Tensor:
    """Each value by its own posterior mean given the restored ones before: what tweedie and posterior promise."""
    x = torch.zeros_like(y)
    for i, d in enumerate(order):
        mean = OFFSETS[i] + sum(COEFFICIENTS[i][j] * x[:, order[j]] for j in range(i))
        x[:, d] = mean + DEVIATIONS[i] ** 2 / (DEVIATIONS[i] ** 2 + sigma**2) * (y[:, d] - mean)
    return x


def noisy_rows(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=FLOAT64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Tweedie ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.1, 0.37, 2.0])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_tweedie_is_the_posterior_mean_of_a_gaussian(sigma: float, order: tuple[int, ...]) -> None:
    model = gaussian_model(noise=NoiseLadder(2.0, 0.1, levels=4), order=order)
    y = noisy_rows(7)
    torch.testing.assert_close(tweedie(model, y, sigma), one_after_the_other(y, sigma, order), rtol=0.0, atol=1e-12)


def test_tweedie_takes_and_gives_data_units() -> None:
    model = gaussian_model(noise=NoiseLadder(2.0, 0.1, levels=4), shift=[1.0, 2.0, 3.0], scale=2.0)
    y = noisy_rows(4)
    shift = torch.tensor([1.0, 2.0, 3.0], dtype=FLOAT64)
    expected = one_after_the_other(y, 0.5) * 2.0 + shift
    torch.testing.assert_close(tweedie(model, y * 2.0 + shift, 1.0), expected, rtol=0.0, atol=1e-12)


def test_tweedie_is_the_score_of_its_level_at_the_noisy_value(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(features=1, noise=ladder)
    y = torch.linspace(-3.0, 3.0, 9, dtype=FLOAT64)[:, None]
    expected = y + ladder.sigma(2) ** 2 * model.score(y, level=2)[0]
    torch.testing.assert_close(tweedie(model, y, ladder.sigma(2)), expected, rtol=0.0, atol=1e-10)


def test_tweedie_needs_a_sigma_within_the_ladder_of_every_dimension() -> None:
    model = gaussian_model(noise=NoiseLadder(2.0, 0.1, levels=4), scale=[1.0, 2.0, 1.0])
    y = noisy_rows(2)
    tweedie(model, y, 0.2)
    tweedie(model, y, 2.0)
    for sigma in (0.15, 2.1, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"sigma: expected one within the ladder, 0.2 to 2 in data units"):
            tweedie(model, y, sigma)
    with pytest.raises(ValueError, match="sigma: this model has no noise ladder"):
        tweedie(gaussian_model(), y, 0.5)


# Langevin ---------------------------------------------------------------------------------------------------------


def test_one_langevin_step_is_the_formula() -> None:
    ladder = NoiseLadder(1.0, 0.2, levels=3)
    model = one_gaussian(0.3, 0.7, noise=ladder)
    y = torch.tensor([[1.0], [-2.0]], dtype=FLOAT64)
    found = langevin(model, y, first_level=-1, steps=1, step_size=0.01, generator=seeded())
    z = torch.randn(2, generator=seeded(), dtype=FLOAT64)[:, None]
    expected = y + 0.005 * (0.3 - y) / (0.7**2 + 0.2**2) + 0.1 * z
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)


def test_larger_levels_take_larger_steps() -> None:
    ladder = NoiseLadder(1.0, 0.2, levels=2)
    model = one_gaussian(0.3, 0.7, noise=ladder)
    y = torch.tensor([[1.0]], dtype=FLOAT64)
    found = langevin(model, y, steps=1, step_size=0.01, generator=seeded())
    generator, x = seeded(), y
    for sigma in ladder.sigmas:
        epsilon = 0.01 * (sigma / 0.2) ** 2
        z = torch.randn(1, generator=generator, dtype=FLOAT64)
        x = x + 0.5 * epsilon * (0.3 - x) / (0.7**2 + sigma**2) + epsilon**0.5 * z
    torch.testing.assert_close(found, x, rtol=0.0, atol=1e-12)


def test_long_langevin_forgets_the_noisy_value() -> None:
    y = torch.full((4000, 1), 5.0, dtype=FLOAT64)
    x = langevin(one_gaussian(0.3, 0.7), y, steps=200, step_size=0.05, generator=seeded())
    assert abs(x.mean().item() - 0.3) < 5.0 * 0.7 / 4000**0.5 + 0.01
    assert abs(x.std().item() - 0.7) < 0.05


def test_spoilt_values_follow_their_law() -> None:
    x = torch.zeros(200_000, dtype=FLOAT64)
    noisy = GaussianNoise(0.6).corrupt(x, seeded())
    assert float(noisy.std()) == pytest.approx(0.6, abs=0.005)
    noise = SaltAndPepper.of_images(0.1, levels=256, smallest_noise=0.04)
    noisy = noise.corrupt(x, seeded())
    assert bool((noise.is_extreme(noisy) == (noisy != 0.0)).all())
    for extreme in (noise.low, noise.high):
        assert float((noisy == extreme).double().mean()) == pytest.approx(0.05, abs=0.002)
    for scale in (0.3, 0.7, 1.9):  # single precision, standardised: the extremes are still found
        y = (noisy.float() - 0.13) / scale
        assert torch.equal(noise.standardised(0.13, scale).is_extreme(y), noise.is_extreme(noisy))
    middles = (torch.arange(256, dtype=FLOAT64) + 0.5) / 128.0 - 1.0
    assert noise.is_extreme(middles).nonzero().flatten().tolist() == [0, 255]


def test_langevin_leaves_alone_what_is_not_suspect() -> None:
    model, y = gaussian_model(), noisy_rows(6)
    suspect = y > 0.0
    x = langevin(model, y, suspect, generator=seeded())
    assert torch.equal(x[~suspect], y[~suspect])
    assert bool((x[suspect] != y[suspect]).all())
    nothing = torch.zeros_like(suspect)
    assert torch.equal(langevin(model, y, nothing, generator=seeded()), y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_level": 3}, "level: expected -3 to 2, got 3"),
        ({"first_level": -4}, "level: expected -3 to 2, got -4"),
        ({"steps": 0}, "steps, step_size: expected at least 1 and a positive number, got 0 and None"),
        ({"step_size": math.inf}, "steps, step_size"),
        ({"step_size": 0.0}, "steps, step_size"),
        ({"suspect": torch.zeros(2, 2, dtype=torch.bool)}, r"suspect: expected booleans of shape \(2, 3\)"),
        ({"suspect": torch.zeros(2, 3)}, "suspect: expected booleans"),
    ],
)
def test_langevin_refuses_what_it_cannot_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        langevin(gaussian_model(noise=NoiseLadder(1.0, 0.1, levels=3)), noisy_rows(2), **options)


# Posteriors of Gaussian noise -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 100.0])
@pytest.mark.parametrize("method", ["closed_form", "quadrature"])
@pytest.mark.parametrize("estimate", ["mean", "median"])
def test_posterior_of_a_gaussian(sigma: float, method: str, estimate: Any) -> None:
    y = 3.0 * noisy_rows(7)
    found = posterior(gaussian_model(), y, GaussianNoise(sigma), estimate, method=method, tol=1e-8)
    torch.testing.assert_close(found, one_after_the_other(y, sigma), rtol=0.0, atol=1e-5)


def test_posterior_takes_and_gives_data_units() -> None:
    shift, scale = torch.tensor([1.0, 2.0, 3.0], dtype=FLOAT64), torch.tensor([2.0, 0.5, 1.0], dtype=FLOAT64)
    model = gaussian_model(shift=shift, scale=scale)
    z, sigma = noisy_rows(4), 0.5
    mean = OFFSETS[0] + DEVIATIONS[0] ** 2 / (DEVIATIONS[0] ** 2 + (sigma / 2.0) ** 2) * (z[:, 0] - OFFSETS[0])
    found = posterior(model, z * scale + shift, GaussianNoise(sigma), tol=1e-8)
    torch.testing.assert_close(found[:, 0], mean * 2.0 + 1.0, rtol=0.0, atol=1e-6)


def test_draws_follow_the_posterior() -> None:
    n, sigma = 5000, 0.5
    y = torch.full((n, 1), 1.5, dtype=FLOAT64)
    x = posterior(one_gaussian(0.3, 0.7), y, GaussianNoise(sigma), "sample", seeded())[:, 0]
    precision = 0.7**-2 + sigma**-2
    exact = torch.special.ndtr((x - (0.3 / 0.7**2 + 1.5 / sigma**2) / precision) * precision**0.5)
    grid = (torch.arange(n) + 0.5) / n
    assert (exact.sort().values - grid).abs().max() < 1.95 / n**0.5  # Kolmogorov-Smirnov at 0.001


def on_a_grid(log_prior: Tensor, x: Tensor, y: float, sigma: float) -> tuple[float, float, float]:
    """Mean, median and log evidence by brute force."""
    log_joint = log_prior - 0.5 * ((y - x) / sigma) ** 2 - math.log(sigma * math.sqrt(2.0 * math.pi))
    mass = (log_joint - log_joint.max()).exp() * (x[1] - x[0])
    below = mass.cumsum(0) - 0.5 * mass
    median = np.interp(0.5, (below / mass.sum()).numpy(), x.numpy())
    return float((mass * x).sum() / mass.sum()), float(median), float(mass.sum().log() + log_joint.max())


@pytest.mark.parametrize("sigma", [0.05, 0.4, 2.0])
@pytest.mark.parametrize("y", [-2.0, -0.9, 0.0, 0.35, 4.0])
def test_posterior_of_a_mixture_against_brute_force(sigma: float, y: float) -> None:
    model, x = two_logistics(), torch.linspace(-12.0, 12.0, 20_001, dtype=FLOAT64)
    mean, median, log_evidence = on_a_grid(model.log_prob(x[:, None]).detach(), x, y, sigma)
    row, noise = torch.tensor([[y]], dtype=FLOAT64), GaussianNoise(sigma)
    assert posterior(model, row, noise, tol=1e-7).item() == pytest.approx(mean, abs=1e-5)
    assert posterior(model, row, noise, "median", tol=1e-7).item() == pytest.approx(median, abs=1e-4)
    found = particle_filter(model, row, noise, count=1, tol=1e-7)
    assert found.log_evidence.item() == pytest.approx(log_evidence, abs=1e-5)


@pytest.mark.parametrize(("method", "tolerance"), [("quadrature", 1e-4), ("flow", 0.02)])
@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_posterior_of_a_score_against_brute_force(
    make_model: MakeModel, ladder: NoiseLadder, method: str, tolerance: float, sigma: float
) -> None:
    model = make_model(features=1, noise=ladder, strength=2.0)
    x = torch.linspace(-8.0, 8.0, 2001, dtype=FLOAT64)
    log_prior = model.log_prob(x[:, None], method=method)
    y, noise = torch.tensor([[-1.5], [0.2], [2.5]], dtype=FLOAT64), GaussianNoise(sigma)
    exact = torch.tensor([on_a_grid(log_prior, x, float(value), sigma) for value in y[:, 0]], dtype=FLOAT64)
    options: dict[str, Any] = {"method": method, "tol": 1e-6}
    mean, median = (posterior(model, y, noise, estimate, **options)[:, 0] for estimate in ("mean", "median"))  # type: ignore[arg-type]
    evidence = particle_filter(model, y, noise, count=1, **options).log_evidence
    torch.testing.assert_close(torch.stack([mean, median, evidence], 1), exact, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("sigma", [1e-3, 0.03, 0.2])
def test_narrow_noise_and_values_far_out_through_the_flow(
    make_model: MakeModel, ladder: NoiseLadder, sigma: float
) -> None:
    model, noise = make_model(features=1, noise=ladder, strength=2.0), GaussianNoise(sigma)
    y = torch.tensor([[-1.5], [0.2], [2.5], [9.0], [40.0]], dtype=FLOAT64)
    means, medians = (posterior(model, y, noise, estimate)[:, 0] for estimate in ("mean", "median"))  # type: ignore[arg-type]
    evidence = particle_filter(model, y, noise, count=1).log_evidence
    for row, mean in enumerate(means):  # the prior is wide where the noise is narrow, and so is the grid
        x = torch.linspace(float(mean) - 9.0 * sigma, float(mean) + 9.0 * sigma, 1501, dtype=FLOAT64)
        exact = on_a_grid(model.log_prob(x[:, None]), x, float(y[row, 0]), sigma)
        assert float(mean) == pytest.approx(exact[0], abs=0.02 * sigma)
        assert float(medians[row]) == pytest.approx(exact[1], abs=0.02 * sigma)
        assert float(evidence[row]) == pytest.approx(exact[2], abs=0.02)


def test_posteriors_that_are_traced_stand_beside_others(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model, y = make_model(features=1, noise=ladder, strength=2.0), torch.tensor([[0.2], [30.0], [-0.4]], dtype=FLOAT64)
    together = posterior(model, y, GaussianNoise(0.5))
    alone = torch.cat([posterior(model, row[None], GaussianNoise(0.5)) for row in y])
    torch.testing.assert_close(together, alone)
    drawn = posterior(model, y.repeat(2000, 1), GaussianNoise(0.5), "sample", seeded()).view(2000, 3)
    torch.testing.assert_close(drawn.mean(0), together[:, 0], rtol=0.0, atol=5.0 * 0.5 / 2000**0.5)


def test_draws_through_the_flow_follow_the_posterior(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model, n, sigma = make_model(features=1, noise=ladder, strength=2.0), 1000, 0.5
    x = torch.linspace(-8.0, 8.0, 1001, dtype=FLOAT64)
    mass = (model.log_prob(x[:, None]) - 0.5 * (1.0 - x).square() / sigma**2).exp()
    below = (mass.cumsum(0) - 0.5 * mass) / mass.sum()
    drawn = posterior(model, torch.ones(n, 1, dtype=FLOAT64), GaussianNoise(sigma), "sample", seeded())[:, 0]
    exact = np.interp(drawn.sort().values.numpy(), x.numpy(), below.numpy())
    assert np.abs(exact - (np.arange(n) + 0.5) / n).max() < 1.95 / n**0.5 + 0.005  # and what the cells leave open


def test_a_model_without_levels_between_is_its_own_flow(make_model: MakeModel) -> None:
    model = make_model(features=1, noise=NoiseLadder(0.5, 0.5, levels=1))
    y = torch.tensor([[-1.5], [0.2]], dtype=FLOAT64)
    means = [posterior(model, y, GaussianNoise(0.5), method=method) for method in ("flow", "quadrature")]
    torch.testing.assert_close(*means, rtol=0.0, atol=5e-3)


# Salt and pepper --------------------------------------------------------------------------------------------------


def ndtr(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


@pytest.mark.parametrize("method", ["closed_form", "quadrature"])
@pytest.mark.parametrize(("y", "inside"), [(-1.0, -0.8), (-1.5, -0.8), (1.0, 0.8)])
def test_the_weight_of_salt_and_pepper_by_hand(method: str, y: float, inside: float) -> None:
    noise = SaltAndPepper(0.2, low=-1.0, high=1.0, width=0.2)
    mass = ndtr((inside - 0.3) / 0.7) if y < 0.0 else 1.0 - ndtr((inside - 0.3) / 0.7)
    true, replaced = 0.8 * mass, 0.1
    kept = true / (true + replaced)
    row = torch.tensor([[y]], dtype=FLOAT64)
    found = posterior(one_gaussian(0.3, 0.7), row, noise, method=method, tol=1e-8)
    assert found.item() == pytest.approx(kept * y + (1.0 - kept) * 0.3, abs=1e-7)
    evidence = particle_filter(one_gaussian(0.3, 0.7), row, noise, count=1, method=method, tol=1e-8).log_evidence
    assert evidence.item() == pytest.approx(math.log((true + replaced) / 0.2), abs=1e-7)


def test_salt_and_pepper_keeps_what_is_between_the_extremes() -> None:
    noise = SaltAndPepper(0.2, low=-1.0, high=1.0, width=0.2)
    y = noisy_rows(50).clamp(-1.0, 1.0)
    suspect = noise.is_extreme(y)
    assert bool(suspect.any())
    assert not bool(suspect.all())
    for estimate in ("mean", "median", "sample"):
        x = posterior(gaussian_model(), y, noise, estimate, seeded())  # type: ignore[arg-type]
        assert torch.equal(x[~suspect], y[~suspect])
    found = particle_filter(gaussian_model(), y, noise, count=4, generator=seeded())
    assert torch.equal(found.candidates.transpose(1, 2)[~suspect], y[~suspect][:, None].expand(-1, 4))


def test_salt_and_pepper_in_data_units() -> None:
    noise = SaltAndPepper(0.2, low=-1.0, high=1.0, width=0.2)
    model, scaled = one_gaussian(0.3, 0.7), one_gaussian(0.3, 0.7, shift=1.0, scale=4.0)
    y = torch.tensor([[-1.0], [0.5], [1.0]], dtype=FLOAT64)
    wide = SaltAndPepper(0.2, low=-3.0, high=5.0, width=0.8)
    found = posterior(scaled, 4.0 * y + 1.0, wide)
    torch.testing.assert_close(found, 4.0 * posterior(model, y, noise) + 1.0, rtol=0.0, atol=1e-10)
    evidence = [
        particle_filter(m, v, c, 1).log_evidence for m, v, c in ((model, y, noise), (scaled, 4.0 * y + 1.0, wide))
    ]
    torch.testing.assert_close(evidence[1], evidence[0] - math.log(4.0), rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("mean", [-3.0, -0.9, 0.3, 2.0])
def test_the_median_of_salt_and_pepper_halves_the_mass(mean: float) -> None:
    noise = SaltAndPepper(0.5, low=-1.0, high=1.0, width=0.2)
    y = -1.0
    kept = 0.5 * ndtr((-0.8 - mean) / 0.7)
    kept = kept / (kept + 0.25)
    x = posterior(one_gaussian(mean, 0.7), torch.tensor([[y]], dtype=FLOAT64), noise, "median").item()
    below, up_to = ((1.0 - kept) * ndtr((x - mean) / 0.7) + kept * float(bound) for bound in (x > y, x >= y))
    assert below <= 0.5 + 1e-6
    assert up_to >= 0.5 - 1e-6


def test_draws_keep_the_extreme_as_often_as_they_should() -> None:
    noise, n = SaltAndPepper(0.2, low=-1.0, high=1.0, width=0.2), 20_000
    x = posterior(one_gaussian(0.3, 0.7), torch.full((n, 1), -1.0, dtype=FLOAT64), noise, "sample", seeded())
    true = 0.8 * ndtr((-0.8 - 0.3) / 0.7)
    kept = true / (true + 0.1)
    stays = x == -1.0
    assert abs(stays.double().mean().item() - kept) < 4.0 * (kept * (1.0 - kept) / n) ** 0.5
    drawn = x[~stays]
    assert abs(drawn.mean().item() - 0.3) < 4.0 * 0.7 / len(drawn) ** 0.5
    assert abs(drawn.std().item() - 0.7) < 4.0 * 0.7 / (2 * len(drawn)) ** 0.5


def test_salt_and_pepper_through_the_flow(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model, noise = make_model(features=1, noise=ladder, strength=2.0), SaltAndPepper(0.2, -1.0, 1.0, 0.4)
    x = torch.linspace(-8.0, 8.0, 2001, dtype=FLOAT64)
    mass = model.log_prob(x[:, None]).exp() * (x[1] - x[0])
    true = 0.8 * mass[x >= 0.6].sum()
    kept = true / (true + 0.1)
    found = posterior(model, torch.ones(1, 1, dtype=FLOAT64), noise)
    assert found.item() == pytest.approx((kept + (1.0 - kept) * (mass * x).sum()).item(), abs=0.01)


# Particles --------------------------------------------------------------------------------------------------------


def standard_error(found: Particles) -> Tensor:
    """Of the posterior mean, if the candidates were independent, ``(*, D)``."""
    distance = found.candidates - found.mean().unsqueeze(-2)
    return (found.weights.unsqueeze(-1) * distance).square().sum(-2).sqrt()


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_particles_against_the_exact_joint_posterior(threshold: float) -> None:
    y, sigma = noisy_rows(2), 0.8
    found = particle_filter(gaussian_model(), y, GaussianNoise(sigma), 2000, seeded(), threshold=threshold)
    mean, log_evidence = joint_posterior(y, sigma)
    tolerance = 6.0 * standard_error(found)  # resampled candidates are not quite independent
    assert tolerance.max() < 0.15
    assert bool(((found.mean() - mean).abs() < tolerance).all())
    torch.testing.assert_close(found.log_evidence, log_evidence, rtol=0.0, atol=0.06)
    greedy = posterior(gaussian_model(), y, GaussianNoise(sigma))
    assert (greedy - mean)[:, 0].abs().max() > 2.0 * tolerance.max()  # later values do inform earlier ones


def test_particles_in_another_order_and_other_units() -> None:
    order, sigma = [2, 0, 1], 0.8
    model = gaussian_model(order=order, shift=1.0, scale=3.0)
    y = noisy_rows(2)
    mean, log_evidence = joint_posterior(y[:, order], sigma)
    found = particle_filter(model, 3.0 * y + 1.0, GaussianNoise(3.0 * sigma), 2000, seeded())
    assert bool(((found.mean()[:, order] - 3.0 * mean - 1.0).abs() < 6.0 * standard_error(found)[:, order]).all())
    torch.testing.assert_close(found.log_evidence, log_evidence - 3.0 * math.log(3.0), rtol=0.0, atol=0.06)


def test_a_later_value_says_whether_an_extreme_is_true() -> None:
    slope, deviation, p, width = 0.9, 0.4, 0.3, 0.2
    model = gaussian_model(((0.0, 0.0), (slope, 0.0)), (0.0, 0.0), (1.0, deviation))
    noise = SaltAndPepper(p, low=-1.0, high=1.0, width=width)
    y = torch.tensor([[-1.0, -0.9], [-1.0, 0.8]], dtype=FLOAT64)
    found = particle_filter(model, y, noise, count=20_000, generator=seeded())

    def normal(x: Tensor, variance: float) -> Tensor:
        return torch.exp(-0.5 * x.square() / variance) / math.sqrt(2.0 * math.pi * variance)

    later, both = y[:, 1], slope**2 + deviation**2
    true = (1.0 - p) * ndtr(-1.0 + width) * normal(later + slope, deviation**2)
    replaced = 0.5 * p * normal(later, both)
    kept = true / (true + replaced)
    mean = -kept + (1.0 - kept) * slope / both * later  # of a replaced value, the regression on the later one
    assert kept[0] > 0.7
    assert kept[1] < 0.05
    assert bool(((found.mean()[:, 0] - mean).abs() < 6.0 * standard_error(found)[:, 0]).all())
    evidence = torch.log((true + replaced) / width) + math.log1p(-p)
    torch.testing.assert_close(found.log_evidence, evidence, rtol=0.0, atol=0.04)


def test_particles_through_the_flow(make_model: MakeModel, ladder: NoiseLadder) -> None:
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
def test_systematic_resampling_keeps_each_as_often_as_its_weight_says(count: int, seed: int) -> None:
    weights = torch.softmax(3.0 * torch.randn(3, count, generator=seeded(seed), dtype=FLOAT64), 1)
    kept = torch.nn.functional.one_hot(systematic_resampling(weights, seeded(seed)), count).sum(1)
    assert torch.equal(kept.sum(1), torch.full((3,), count))
    assert bool(((kept - count * weights).abs() < 1.0 + 1e-9).all())
    few = torch.nn.functional.one_hot(systematic_resampling(weights, seeded(seed), 5), count).sum(1)
    assert torch.equal(few.sum(1), torch.full((3,), 5))
    assert bool(((few - 5 * weights).abs() < 1.0 + 1e-9).all())


def test_weights_stay_equal_only_where_all_is_always_resampled() -> None:
    y, noise = noisy_rows(3), GaussianNoise(0.8)
    for threshold in (0.0, 0.5, 1.0):
        weights = particle_filter(gaussian_model(), y, noise, 50, seeded(), threshold=threshold).weights
        torch.testing.assert_close(weights.sum(1), torch.ones(3, dtype=FLOAT64))
        assert bool((weights == weights[:, :1]).all()) == (threshold == 1.0)


# States of contexts -----------------------------------------------------------------------------------------------


def contexts() -> list[tuple[Context, Tensor | None]]:
    labels, dense = torch.arange(4) % 2, torch.randn(4, 2, dtype=FLOAT64)
    found: list[tuple[Context, Tensor | None]] = [
        (MADE(6, 2, (8, 8), residual=True, order=(3, 1, 0, 5, 2, 4)), None),
        (MADE(6, 2, (8,), sinusoids=2, classes=2), labels),
        (MADE(6, 2, (), condition_features=2), dense),
        (PixelCNNPP((2, 5, 7), 3, nr_filters=4, nr_resnet=2), None),
        (PixelCNNPP((1, 6, 5), 3, nr_filters=4, nr_resnet=1, classes=2), labels),
        (PixelCNNPP((3, 4, 4), 3, nr_filters=4, nr_resnet=1, condition_features=2), dense),
    ]
    for context, _ in found:
        with torch.no_grad():
            for parameter in context.double().eval().parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return found


@pytest.mark.parametrize("index", range(6))
def test_selected_rows_go_on_as_if_they_had_always_been_there(index: int) -> None:
    context, condition = contexts()[index]
    rows = torch.tensor([2, 2, 0, 3, 2])
    x = torch.randn(4, context.features, dtype=FLOAT64)
    with torch.no_grad():
        expected = context(x[rows], None if condition is None else condition[rows])
        for moment in range(0, context.features, 1 + context.features // 12):
            state, before = context.begin((4,), condition), x
            for position, d in enumerate(context.order):
                if position == moment:
                    context.select(state, rows)
                    before = x[rows]
                previous = None if position == 0 else before[:, context.order[position - 1]]
                found = context.step(state, previous)
                if position >= moment:
                    torch.testing.assert_close(found, expected[:, d], rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("index", [0, 3])
def test_rows_are_selected_of_flat_batches_alone(index: int) -> None:
    context, _ = contexts()[index]
    with pytest.raises(ValueError, match="state: expected a batch of one dimension"):
        context.select(context.begin((2, 2)), torch.tensor([0]))


# What all of them keep --------------------------------------------------------------------------------------------


def all_restored(model: AutoregressiveModel, y: Tensor, seed: int = 0, **options: Any) -> dict[str, Tensor]:
    gaussian, impulses = GaussianNoise(0.5), SaltAndPepper(0.2, -1.0, 1.0, 0.2)
    return {
        "tweedie": tweedie(model, y, 0.5, **options),
        "langevin": langevin(model, y, generator=seeded(seed), **options),
        "mean": posterior(model, y, gaussian, **options),
        "sample": posterior(model, y, gaussian, "sample", seeded(seed), **options),
        "impulses": posterior(model, y, impulses, "sample", seeded(seed), **options),
        "particles": particle_filter(model, y, gaussian, 6, seeded(seed), **options).mean(),
        "impulse particles": particle_filter(model, y, impulses, 6, seeded(seed), **options).mean(),
    }


@pytest.mark.parametrize("kind", ["score", "gaussian", "mixture"])
def test_shapes_types_and_seeds(make_model: MakeModel, ladder: NoiseLadder, kind: str) -> None:
    model = make_model(kind, features=2, noise=ladder, dtype=torch.float32)
    y = torch.randn(2, 3, 2)
    kept = y.clone()
    first, second, other = (all_restored(model, y, seed) for seed in (0, 0, 1))
    assert torch.equal(y, kept)
    for name, x in first.items():
        assert x.shape == y.shape, name
        assert x.dtype == torch.float32, name
        assert bool(x.isfinite().all()), name
        assert not x.requires_grad, name
        assert torch.equal(x, second[name]), name
        assert torch.equal(x, other[name]) == (name in ("tweedie", "mean")), name
    found = particle_filter(model, y, GaussianNoise(0.5), 6)
    assert found.candidates.shape == (2, 3, 6, 2)
    assert found.weights.shape == (2, 3, 6)
    assert found.log_evidence.shape == (2, 3)


def test_conditions_follow_their_rows(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(features=2, noise=ladder, classes=3)
    y, labels = torch.zeros(3, 2, dtype=FLOAT64), torch.tensor([0, 1, 2])
    together = tweedie(model, y, 0.5, labels)
    alone = [tweedie(model, y[:1], 0.5, labels[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert len(together.unique(dim=0)) == 3
    mean = [
        particle_filter(model, y[:1], GaussianNoise(0.5), 6, seeded(), condition=labels[i]).mean() for i in range(3)
    ]
    assert len(torch.cat(mean).unique(dim=0)) == 3


def test_many_rows_are_taken_in_parts() -> None:
    model, y = gaussian_model(noise=NoiseLadder(1.0, 0.1, levels=3)), noisy_rows(1100)
    torch.testing.assert_close(tweedie(model, y, 0.5), one_after_the_other(y, 0.5), rtol=0.0, atol=1e-12)
    assert tweedie(model, y[:0], 0.5).shape == (0, 3)
    found = particle_filter(gaussian_model(), y[:40], GaussianNoise(0.5), count=100, generator=seeded())
    assert found.mean().shape == (40, 3)


def test_integrals_that_miss_the_tolerance_are_reported(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(features=2, noise=ladder, strength=3.0)
    y = torch.zeros(3, 2, dtype=FLOAT64)
    for noise in (GaussianNoise(0.5), SaltAndPepper(0.1, 0.0, 1.0, 0.1)):
        with pytest.warns(UserWarning, match=r"integrals \(of 6 conditionals\) missed the tolerance"):
            posterior(model, y, noise, method="quadrature", tol=1e-14, max_evaluations=40)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianNoise(0.0), "sigma: expected a positive number, got 0.0"),
        (lambda: GaussianNoise(math.inf), "sigma: expected a positive number, got inf"),
        (lambda: SaltAndPepper(0.0), "probability: expected a number between 0 and 1, got 0.0"),
        (lambda: SaltAndPepper(1.0), "probability"),
        (lambda: SaltAndPepper(0.1, low=1.0, high=-1.0), "low, high: expected finite numbers, low below high"),
        (lambda: SaltAndPepper(0.1, width=0.0), "width: expected a positive number, got 0.0"),
    ],
)
def test_impossible_corruptions_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (posterior, {"estimate": "mode"}, "estimate: expected one of mean, median, sample, got 'mode'"),
        (posterior, {"method": "flow"}, 'method: "flow" needs a model with a noise ladder'),
        (posterior, {"method": "magic"}, "method: expected"),
        (posterior, {"y": torch.zeros(2, 4)}, r"x: expected shape \(\*, 3\), got \(2, 4\)"),
        (posterior, {"y": torch.full((2, 3), math.nan)}, "NaN"),
        (posterior, {"condition": torch.zeros(2, 1)}, "condition: this model has none"),
        (particles, {"count": 0}, "count: expected at least 1, got 0"),
        (particles, {"threshold": 2.0}, "threshold: expected a share from 0 to 1, got 2.0"),
        (particles, {"y": torch.zeros(0, 3)}, r"y: expected at least one row, got shape \(0, 3\)"),
    ],
)
def test_mistakes_are_one_line(function: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        function(gaussian_model(), **{"y": noisy_rows(2), "corruption": GaussianNoise(1.0), **options})
    assert "\n" not in str(error.value)


# The command ------------------------------------------------------------------------------------------------------

TINY = """
name: tiny
data: {kind: images, path: %s}
model:
  context: {kind: MADE, hidden_features: [16], context_features: 4}
  head: {kind: ScoreHead, hidden_features: [16]}
  noise: {sigma_max: 1.0, sigma_min: 0.1, levels: 4}
train: {steps: 300, batch_size: 64, device: cpu, validate_every: 100, standardise: none}
"""


IMPULSES = ("--noise", "salt-and-pepper", "--probability")


def call(*arguments: object) -> int:
    return application.run([str(argument) for argument in arguments])


def small_pictures(n: int) -> np.ndarray:
    """Digits of 4 x 4 pixels."""
    return (digits().pixels[:n, 0].numpy()[:, ::2, ::2] * 15).astype(np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("denoise")
    (folder / "clean").mkdir()
    for index, picture in enumerate(small_pictures(100)):
        Image.fromarray(picture).save(folder / "clean" / f"{index}.png")
    (folder / "tiny.yaml").write_text(TINY % (folder / "clean"))
    assert call("train", folder / "tiny.yaml", "--out", folder / "run") == 0
    return folder / "run"


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    """Three digits, one of them in a folder of its own, with a tenth of the pixels black or white."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "noisy"
    (folder / "more").mkdir(parents=True)
    for name, picture in zip(("a.png", "b.bmp", "more/c.png"), small_pictures(3), strict=True):
        spoilt = np.where(generator.random((4, 4)) < 0.1, 255 * generator.integers(0, 2, (4, 4)), picture)
        Image.fromarray(spoilt.astype(np.uint8)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ["--sigma", "0.5"],
        ["--sigma", "0.05", "--method", "langevin"],
        ["--sigma", "0.5", "--method", "posterior"],
        [*IMPULSES, "0.1"],
        [*IMPULSES, "0.1", "--method", "particles"],
        [*IMPULSES, "0.1", "--method", "langevin"],
    ],
)
def test_images_are_restored_under_their_names(
    options: list[str], run: Path, noisy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in noisy.rglob("*.*")}
    for out in ("first", "second"):
        assert call("denoise", run, noisy, "--out", tmp_path / out, "--device", "cpu", *options) == 0
    assert "3 images in" in capsys.readouterr().out
    first, second = read_images(tmp_path / "first"), read_images(tmp_path / "second")
    assert first.names == ("a.png", "b.png", "more/c.png")
    assert first.pixels.shape == (3, 1, 4, 4)
    assert torch.equal(first.pixels, second.pixels)
    given_ = read_images(noisy).pixels
    assert not torch.equal(first.pixels, given_)
    if "salt-and-pepper" in options:
        between = (given_ > 0) & (given_ < 255)
        assert torch.equal(first.pixels[between], given_[between])
    assert {path: path.read_bytes() for path in noisy.rglob("*.*")} == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--sigma", "0.5", "--out", "NOISY"], 1, "expected a folder outside of"),
        (["--sigma", "0.5", "--out", "NOISY/restored"], 1, "expected a folder outside of"),
        (["--sigma", "0.5", "--out", "TAKEN"], 1, "a.png: exists already"),
        (["--out", "x"], 1, "expected --sigma and no --probability"),
        (["--sigma", "0.5", "--noise", "salt-and-pepper", "--out", "x"], 1, "expected --probability and no --sigma"),
        (["--sigma", "0.5", "--probability", "0.1", "--out", "x"], 1, "expected --sigma and no --probability"),
        (["--sigma", "5", "--out", "x"], 1, "sigma: expected one within the ladder, 0.1 to 1"),
        (["--sigma", "-1", "--out", "x"], 1, "sigma: expected a positive number"),
        ([*IMPULSES, "2", "--out", "x"], 1, "probability: expected a number"),
        ([*IMPULSES, "0.1", "--method", "tweedie", "--out", "x"], 1, "expected gaussian"),
        (["--noise", "snow", "--sigma", "1", "--out", "x"], 2, "--noise"),
        (["--sigma", "0.5"], 2, "--out"),
    ],
)  # fmt: skip
def test_mistakes_of_the_command_are_one_line(
    arguments: list[str], code: int, message: str, run: Path, noisy: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "a.png").write_bytes(b"kept")
    given_ = [a.replace("NOISY", str(noisy)).replace("TAKEN", str(tmp_path / "taken")) for a in arguments]
    capsys.readouterr()
    assert call("denoise", run, noisy, *given_) == code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("arcsm: ")
    assert message in captured.err
    assert (tmp_path / "taken" / "a.png").read_bytes() == b"kept"
    assert not (tmp_path / "x").exists()


def test_images_of_another_size_or_none_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "large").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "large" / "a.png")
    (tmp_path / "twice").mkdir()
    for suffix in ("png", "bmp"):
        Image.new("L", (4, 4)).save(tmp_path / "twice" / f"a.{suffix}")
    (tmp_path / "empty").mkdir()
    options = ["--sigma", "0.5", "--out", tmp_path / "x"]
    for name, message in (
        ("large", "expected images of 1x4x4, got 1x9x9"),
        ("twice", "expected names that differ"),
        ("empty", "expected images"),
        ("nowhere", "expected a folder of images"),
    ):
        assert call("denoise", run, tmp_path / name, *options) == 1
        assert message in capsys.readouterr().err


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("denoise", "--help") == 0
    text = capsys.readouterr().out
    assert "arcsm denoise runs/mnist noisy" in text
    assert "Example" in text
