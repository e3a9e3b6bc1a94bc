"""The Gaussian head against closed forms."""

import math

import pytest
import torch

from small_heads import FLOAT64, NORMALISED_HEADS


def test_gaussian_with_noise_is_the_convolution_with_the_noise() -> None:
    head = NORMALISED_HEADS["gaussian"]()
    context, sigma = torch.randn(6, 1, 3, dtype=FLOAT64), 0.7
    x = torch.linspace(-3.0, 3.0, 13, dtype=FLOAT64).expand(6, -1)
    noise = torch.linspace(-8.0, 8.0, 2001, dtype=FLOAT64)
    shifted = head.log_prob(context.unsqueeze(2), x.unsqueeze(-1) - sigma * noise).exp()
    convolved = torch.trapezoid(shifted * torch.exp(-0.5 * noise.square()) / math.sqrt(2.0 * math.pi), noise)
    torch.testing.assert_close(head.log_prob(context, x, sigma).exp(), convolved, rtol=1e-9, atol=1e-12)


def test_moments_follow_from_the_projection() -> None:
    head = NORMALISED_HEADS["gaussian"]()
    raw = torch.tensor([[1.5, 0.0], [-2.0, 1.0], [0.0, -60.0]], dtype=FLOAT64)
    mean, variance = head.moments(raw)  # type: ignore[operator]
    assert mean.tolist() == [1.5, -2.0, 0.0]
    assert variance[:2].sqrt().log().tolist() == pytest.approx([0.0, 1.0], abs=1e-3)
    assert float(variance[2].sqrt().log()) == pytest.approx(-7.0)  # the minimum
