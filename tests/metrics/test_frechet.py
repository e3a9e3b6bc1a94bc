"""The Fréchet distance: zero for the same images, larger for worse images, exact for Gaussians."""

from __future__ import annotations

import sys

import pytest
import torch

from arcsm.metrics.frechet import Frechet, LiteFeatures


def images(count: int, seed: int) -> torch.Tensor:
    """Return smooth random images, uint8 ``(N, 3, 16, 16)``."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return (255.0 * torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear")).to(torch.uint8)


def test_noise_is_farther_than_other_images_of_the_same_kind() -> None:
    frechet, clean = Frechet(images(24, 0)), images(24, 1)
    same, alike = frechet.distance(images(24, 0)), frechet.distance(clean)
    assert abs(same) < 1e-2  # the covariance has rank 23 of 1280
    noise = torch.randint(-60, 61, clean.shape, generator=torch.Generator().manual_seed(2))
    noisy = (clean.long() + noise).clamp(0, 255).to(torch.uint8)
    assert 0.0 < alike < 0.5 * frechet.distance(noisy)


def test_it_is_the_distance_between_two_gaussians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiteFeatures, "num_features", 2)
    monkeypatch.setattr(LiteFeatures, "forward", lambda self, x: x[:, :2, 0, 0].double())
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(90, 110, (500, 3, 4, 4), generator=generator, dtype=torch.uint8)
    moved = real.clone()
    moved[:, 0] += 5  # the same covariance, another mean
    frechet = Frechet(real)
    assert frechet.distance(real) == pytest.approx(0.0, abs=1e-6)
    assert frechet.distance(moved) == pytest.approx(25.0, rel=1e-6)


def test_images_of_other_shapes_or_types_raise() -> None:
    for bad in (torch.zeros(4, 3, 8, 8), torch.zeros(4, 2, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="expected uint8"):
            Frechet(bad)


def test_a_missing_network_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match="pip install"):
        Frechet(images(2, 0))
