"""The known distribution of the experiment "entropy"."""

from __future__ import annotations

import torch
from torch import Tensor

from arcsm.experiments import entropy
from small_vaes import normal


def test_scores_and_entropy_gradient_match_the_log_density() -> None:
    """The scores are those of the log density; the entropy gradient is that of the mean log slope."""
    sampler = entropy.Sampler.of(3, 0.7, 0.8)
    e = normal(1, 6, 3)
    widths = sampler.log_widths.detach().exp()

    def projected_log_prob(z: Tensor, d: int, previous: Tensor) -> Tensor:
        """Return that of z_d given the earlier value, by bisection for the noise."""
        scaled = (z - previous) / widths[d]
        low, high = torch.full_like(scaled, -20.0), torch.full_like(scaled, 20.0)
        for _ in range(80):
            middle = 0.5 * (low + high)
            below = middle + 0.8 * torch.tanh(3.0 * middle) < scaled
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        slope = 1.0 + 2.4 / torch.cosh(3.0 * middle).square()
        return -0.5 * middle.square() - torch.log(slope * widths[d])

    with torch.no_grad():
        z, step = sampler(e), 1e-5
        for d in range(3):
            previous = 0.7 * z[..., d - 1] if d else torch.zeros_like(z[..., 0])
            up, down = (projected_log_prob(z[..., d] + h, d, previous) for h in (step, -step))
            expected = (up - down) / (2.0 * step)
            torch.testing.assert_close(sampler.conditional_scores(e)[..., d], expected, rtol=1e-5, atol=1e-6)
    e = normal(1, 400_000, 3, seed=5)
    gradients = torch.autograd.grad(-(sampler.conditional_scores(e) * sampler(e)).sum(-1).mean(), sampler.parameters())
    gradient = torch.cat([part.flatten() for part in gradients])
    torch.testing.assert_close(gradient, sampler.true_gradient(), rtol=0.0, atol=0.03)
