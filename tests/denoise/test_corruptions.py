"""Corruptions and their posteriors against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from arcsm.denoise import GaussianNoise, SaltAndPepper, particle_filter, posterior
from small_models import one_gaussian, seeded

FLOAT64 = torch.float64


def ndtr(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def test_corrupted_values_follow_their_distribution() -> None:
    x = torch.zeros(200_000, dtype=FLOAT64)
    noisy = GaussianNoise(0.6).corrupt(x, seeded())
    assert float(noisy.std()) == pytest.approx(0.6, abs=0.005)
    noise = SaltAndPepper.of_images(0.1, levels=256, smallest_noise=0.04)
    noisy = noise.corrupt(x, seeded())
    assert bool((noise.is_extreme(noisy) == (noisy != 0.0)).all())
    for extreme in (noise.low, noise.high):
        assert float((noisy == extreme).double().mean()) == pytest.approx(0.05, abs=0.002)
    y = (noisy.float() - 0.13) / 0.7  # extremes survive standardisation in single precision
    assert torch.equal(noise.standardised(0.13, 0.7).is_extreme(y), noise.is_extreme(noisy))


@pytest.mark.parametrize("method", ["closed_form", "quadrature"])
@pytest.mark.parametrize(("y", "inside"), [(-1.5, -0.8), (1.0, 0.8)])
def test_salt_and_pepper_against_a_closed_form(method: str, y: float, inside: float) -> None:
    noise = SaltAndPepper(0.2, low=-1.0, high=1.0, width=0.2)
    mass = ndtr((inside - 0.3) / 0.7) if y < 0.0 else 1.0 - ndtr((inside - 0.3) / 0.7)
    true, replaced = 0.8 * mass, 0.1
    kept = true / (true + replaced)
    row = torch.tensor([[y]], dtype=FLOAT64)
    found = posterior(one_gaussian(0.3, 0.7), row, noise, method=method, tol=1e-8)
    assert found.item() == pytest.approx(kept * y + (1.0 - kept) * 0.3, abs=1e-7)
    evidence = particle_filter(one_gaussian(0.3, 0.7), row, noise, count=1, method=method, tol=1e-8).log_evidence
    assert evidence.item() == pytest.approx(math.log((true + replaced) / 0.2), abs=1e-7)


@pytest.mark.parametrize("mean", [-3.0, 0.3])
def test_the_median_of_salt_and_pepper_halves_the_mass(mean: float) -> None:
    noise = SaltAndPepper(0.5, low=-1.0, high=1.0, width=0.2)
    y = -1.0
    kept = 0.5 * ndtr((-0.8 - mean) / 0.7)
    kept = kept / (kept + 0.25)
    x = posterior(one_gaussian(mean, 0.7), torch.tensor([[y]], dtype=FLOAT64), noise, "median").item()
    below, up_to = ((1.0 - kept) * ndtr((x - mean) / 0.7) + kept * float(bound) for bound in (x > y, x >= y))
    assert below <= 0.5 + 1e-6
    assert up_to >= 0.5 - 1e-6


def test_samples_keep_the_extreme_with_the_posterior_probability() -> None:
    noise, n = SaltAndPepper(0.2, low=-1.0, high=1.0, width=0.2), 20_000
    x = posterior(one_gaussian(0.3, 0.7), torch.full((n, 1), -1.0, dtype=FLOAT64), noise, "sample", seeded())
    true = 0.8 * ndtr((-0.8 - 0.3) / 0.7)
    kept = true / (true + 0.1)
    stays = x == -1.0
    assert abs(stays.double().mean().item() - kept) < 4.0 * (kept * (1.0 - kept) / n) ** 0.5
    drawn = x[~stays]
    assert abs(drawn.mean().item() - 0.3) < 4.0 * 0.7 / len(drawn) ** 0.5
    assert abs(drawn.std().item() - 0.7) < 4.0 * 0.7 / (2 * len(drawn)) ** 0.5


def test_invalid_corruptions_raise() -> None:
    with pytest.raises(ValueError, match=r"sigma: expected a positive number, got 0\.0"):
        GaussianNoise(0.0)
    with pytest.raises(ValueError, match=r"probability: expected a number between 0 and 1, got 0\.0"):
        SaltAndPepper(0.0)
    with pytest.raises(ValueError, match="low, high: expected finite numbers, low below high"):
        SaltAndPepper(0.1, low=1.0, high=-1.0)
