"""Distances between samples, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from arcsm.metrics import energy_distance, sliced_wasserstein


def normal(count: int, features: int, seed: int) -> torch.Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


def test_energy_distance_of_shifted_gaussians() -> None:
    """E|A - B| of N(0, 1) and N(m, 1) is the mean of a folded normal with location m and variance 2."""
    shift = 1.5
    folded = 2.0 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4.0) + shift * math.erf(shift / 2.0)
    expected = 2.0 * folded - 2.0 * 2.0 / math.sqrt(math.pi)
    found = energy_distance(normal(4000, 1, 0), normal(3000, 1, 1) + shift)
    assert found == pytest.approx(expected, abs=0.05)


def test_sliced_wasserstein_of_a_shift_is_its_mean_projection() -> None:
    """A shift m moves every projection by m . v; in two dimensions the mean of |m . v| is 2 |m| / pi."""
    a = normal(500, 2, 0)
    found = sliced_wasserstein(a, a + torch.tensor([3.0, 4.0]), directions=4000)
    assert found == pytest.approx(2.0 * 5.0 / math.pi, rel=0.03)
