"""The Gaussian head against closed forms."""

import math

import torch

from arcsm import GaussianHead
from small_heads import FLOAT64


def test_gaussian_with_noise_is_the_convolution_with_the_noise() -> None:
    head = GaussianHead(3).double()
    context, sigma = torch.randn(6, 1, 3, dtype=FLOAT64), 0.7
    x = torch.linspace(-3.0, 3.0, 13, dtype=FLOAT64).expand(6, -1)
    noise = torch.linspace(-8.0, 8.0, 2001, dtype=FLOAT64)
    shifted = head.log_prob(context.unsqueeze(2), x.unsqueeze(-1) - sigma * noise).exp()
    convolved = torch.trapezoid(shifted * torch.exp(-0.5 * noise.square()) / math.sqrt(2.0 * math.pi), noise)
    torch.testing.assert_close(head.log_prob(context, x, sigma).exp(), convolved, rtol=1e-9, atol=1e-12)
