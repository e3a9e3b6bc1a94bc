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


@pytest.fixture(scope="module")
def frechet() -> Frechet:
    return Frechet(images(48, 0))


def test_the_distance_to_the_same_images_is_zero(frechet: Frechet) -> None:
    assert abs(frechet.distance(images(48, 0))) < 1e-2  # the covariance has rank 47 of 1280


def test_noise_is_farther_than_other_images_of_the_same_kind(frechet: Frechet) -> None:
    alike, clean = frechet.distance(images(48, 1)), images(48, 1)
    noise = torch.randint(-60, 61, clean.shape, generator=torch.Generator().manual_seed(2))
    noisy = (clean.long() + noise).clamp(0, 255).to(torch.uint8)
    assert 0.0 < alike < 0.5 * frechet.distance(noisy)


def test_a_distance_does_not_depend_on_earlier_ones(frechet: Frechet) -> None:
    first = frechet.distance(images(16, 3))
    frechet.distance(images(16, 4))
    assert frechet.distance(images(16, 3)) == pytest.approx(first, rel=1e-6)


def test_grey_images_equal_their_colour_version() -> None:
    grey = images(8, 0)[:, :1]
    assert abs(Frechet(grey).distance(grey.expand(-1, 3, -1, -1))) < 1e-2


def test_it_is_the_distance_between_two_gaussians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiteFeatures, "num_features", 2)
    monkeypatch.setattr(LiteFeatures, "forward", lambda self, x: x[:, :2, 0, 0].double())
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(90, 110, (500, 3, 4, 4), generator=generator, dtype=torch.uint8)
    moved = real.clone()
    moved[:, 0] += 5  # the same covariance, another mean
    assert Frechet(real).distance(moved) == pytest.approx(25.0, rel=1e-6)


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(4, 3, 8, 8), torch.zeros(4, 2, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)],
)
def test_images_of_other_shapes_or_types_raise(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        Frechet(bad)


def test_a_missing_network_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match="pip install"):
        Frechet(images(2, 0))
