"""Restoration of rows against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from arcsm import AutoregressiveModel, NoiseLadder
from arcsm.denoise import GaussianNoise, SaltAndPepper, langevin, particle_filter, posterior, tweedie
from small_models import (
    MakeModel,
    linear_gaussian_model,
    one_gaussian,
    random_rows,
    seeded,
    sequential_posterior_mean,
)

FLOAT64 = torch.float64


@pytest.mark.parametrize("sigma", [0.1, 0.37])
def test_tweedie_is_the_posterior_mean_of_a_gaussian(sigma: float) -> None:
    shift, order = torch.tensor([1.0, 2.0, 3.0], dtype=FLOAT64), (2, 0, 1)
    model = linear_gaussian_model(noise=NoiseLadder(2.0, 0.1, levels=4), order=order, shift=shift, scale=2.0)
    y = random_rows(7)
    expected = sequential_posterior_mean(y, sigma, order) * 2.0 + shift
    torch.testing.assert_close(tweedie(model, y * 2.0 + shift, 2.0 * sigma), expected, rtol=0.0, atol=1e-12)


def test_tweedie_is_the_score_of_its_level_at_the_noisy_value(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(features=1, noise=ladder)
    y = torch.linspace(-3.0, 3.0, 9, dtype=FLOAT64)[:, None]
    expected = y + ladder.sigma(2) ** 2 * model.score(y, level=2)[0]
    torch.testing.assert_close(tweedie(model, y, ladder.sigma(2)), expected, rtol=0.0, atol=1e-10)


def test_tweedie_needs_a_sigma_within_the_ladder_of_every_dimension() -> None:
    model = linear_gaussian_model(noise=NoiseLadder(2.0, 0.1, levels=4), scale=[1.0, 2.0, 1.0])
    y = random_rows(2)
    tweedie(model, y, 0.2)
    tweedie(model, y, 2.0)
    for sigma in (0.15, 2.1, math.nan):
        with pytest.raises(ValueError, match=r"sigma: expected one within the ladder, 0.2 to 2 in data units"):
            tweedie(model, y, sigma)
    with pytest.raises(ValueError, match="sigma: this model has no noise ladder"):
        tweedie(linear_gaussian_model(), y, 0.5)


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


def test_langevin_changes_only_corrupted_values() -> None:
    model, y = linear_gaussian_model(), random_rows(6)
    corrupted = y > 0.0
    x = langevin(model, y, corrupted, generator=seeded())
    assert torch.equal(x[~corrupted], y[~corrupted])
    assert bool((x[corrupted] != y[corrupted]).all())
    nothing = torch.zeros_like(corrupted)
    assert torch.equal(langevin(model, y, nothing, generator=seeded()), y)
    with pytest.raises(ValueError, match=r"corrupted: expected booleans of shape \(6, 3\)"):
        langevin(model, y, nothing[:, :2])
    with pytest.raises(ValueError, match="steps, step_size: expected at least 1 and a positive number, got 0 and None"):
        langevin(model, y, steps=0)


@pytest.mark.parametrize("sigma", [0.01, 3.0])
@pytest.mark.parametrize("method", ["closed_form", "quadrature"])
@pytest.mark.parametrize("estimate", ["mean", "median"])
def test_posterior_of_a_gaussian(sigma: float, method: str, estimate: Any) -> None:
    y = 3.0 * random_rows(7)
    found = posterior(linear_gaussian_model(), y, GaussianNoise(sigma), estimate, method=method, tol=1e-8)
    torch.testing.assert_close(found, sequential_posterior_mean(y, sigma), rtol=0.0, atol=1e-5)


def test_samples_follow_the_posterior() -> None:
    n, sigma = 5000, 0.5
    y = torch.full((n, 1), 1.5, dtype=FLOAT64)
    x = posterior(one_gaussian(0.3, 0.7), y, GaussianNoise(sigma), "sample", seeded())[:, 0]
    precision = 0.7**-2 + sigma**-2
    exact = torch.special.ndtr((x - (0.3 / 0.7**2 + 1.5 / sigma**2) / precision) * precision**0.5)
    grid = (torch.arange(n) + 0.5) / n
    assert (exact.sort().values - grid).abs().max() < 1.95 / n**0.5  # Kolmogorov-Smirnov at 0.001


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


@pytest.mark.parametrize("kind", ["score", "mixture"])
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


def test_conditions_follow_their_rows(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(features=2, noise=ladder, classes=3)
    y, labels = torch.zeros(3, 2, dtype=FLOAT64), torch.tensor([0, 1, 2])
    together = tweedie(model, y, 0.5, labels)
    alone = [tweedie(model, y[:1], 0.5, labels[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert len(together.unique(dim=0)) == 3


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (posterior, {"estimate": "mode"}, "estimate: expected one of mean, median, sample, got 'mode'"),
        (posterior, {"method": "flow"}, 'method: "flow" needs a model with a noise ladder'),
        (posterior, {"y": torch.zeros(2, 4)}, r"x: expected shape \(\*, 3\), got \(2, 4\)"),
        (particle_filter, {"count": 0}, "count: expected at least 1, got 0"),
        (particle_filter, {"threshold": 2.0}, "threshold: expected a fraction from 0 to 1, got 2.0"),
    ],
)
def test_invalid_arguments_raise_in_one_line(function: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        function(linear_gaussian_model(), **{"y": random_rows(2), "corruption": GaussianNoise(1.0), **options})
    assert "\n" not in str(error.value)
