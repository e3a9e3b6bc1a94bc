"""Corruptions and their posteriors against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from arcsm import NoiseLadder
from arcsm.denoise import GaussianNoise, SaltAndPepper, particle_filter, posterior
from small_models import MakeModel, linear_gaussian_model, one_gaussian, random_rows, seeded

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
    for scale in (0.3, 0.7, 1.9):  # extremes survive standardisation in single precision
        y = (noisy.float() - 0.13) / scale
        assert torch.equal(noise.standardised(0.13, scale).is_extreme(y), noise.is_extreme(noisy))
    middles = (torch.arange(256, dtype=FLOAT64) + 0.5) / 128.0 - 1.0
    assert noise.is_extreme(middles).nonzero().flatten().tolist() == [0, 255]


@pytest.mark.parametrize("method", ["closed_form", "quadrature"])
@pytest.mark.parametrize(("y", "inside"), [(-1.0, -0.8), (-1.5, -0.8), (1.0, 0.8)])
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


def test_salt_and_pepper_keeps_values_between_the_extremes() -> None:
    noise = SaltAndPepper(0.2, low=-1.0, high=1.0, width=0.2)
    y = random_rows(50).clamp(-1.0, 1.0)
    extreme = noise.is_extreme(y)
    assert bool(extreme.any())
    assert not bool(extreme.all())
    for estimate in ("mean", "median", "sample"):
        x = posterior(linear_gaussian_model(), y, noise, estimate, seeded())  # type: ignore[arg-type]
        assert torch.equal(x[~extreme], y[~extreme])
    found = particle_filter(linear_gaussian_model(), y, noise, count=4, generator=seeded())
    assert torch.equal(found.candidates.transpose(1, 2)[~extreme], y[~extreme][:, None].expand(-1, 4))


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


def test_salt_and_pepper_through_the_flow(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model, noise = make_model(features=1, noise=ladder, strength=2.0), SaltAndPepper(0.2, -1.0, 1.0, 0.4)
    x = torch.linspace(-8.0, 8.0, 2001, dtype=FLOAT64)
    mass = model.log_prob(x[:, None]).exp() * (x[1] - x[0])
    true = 0.8 * mass[x >= 0.6].sum()
    kept = true / (true + 0.1)
    found = posterior(model, torch.ones(1, 1, dtype=FLOAT64), noise)
    assert found.item() == pytest.approx((kept + (1.0 - kept) * (mass * x).sum()).item(), abs=0.01)


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
def test_invalid_corruptions_raise(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
