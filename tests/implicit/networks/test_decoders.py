"""Decoders against the distributions of torch."""

from __future__ import annotations

import math

import torch

from arcsm.implicit import BernoulliDecoder, GaussianImageDecoder
from small_vaes import seeded


def test_log_prob_and_samples_match_torch_distributions() -> None:
    torch.manual_seed(0)
    z = torch.randn(3, 4, 2)
    bernoulli = BernoulliDecoder(2, 16, (8,))
    x = (torch.rand(3, 16) < 0.5).float()
    expected = torch.distributions.Bernoulli(logits=bernoulli.logits(z)).log_prob(x.unsqueeze(1)).sum(-1)
    torch.testing.assert_close(bernoulli.log_prob(x, z), expected)
    gaussian = GaussianImageDecoder(2, (1, 4, 4), (3,), log_std=-1.0)
    expected = torch.distributions.Normal(gaussian.mean(z), math.exp(-1.0)).log_prob(x.unsqueeze(1)).sum(-1)
    torch.testing.assert_close(gaussian.log_prob(x, z), expected)
    many = torch.zeros(20_000, 2)
    for decoder in (bernoulli, gaussian):
        with torch.no_grad():
            samples = decoder.sample(many, seeded())
        torch.testing.assert_close(samples.mean(0), decoder.mean(many[0]).detach(), rtol=0.0, atol=0.02)
        torch.testing.assert_close(decoder.mean(z)[1, 2], decoder.mean(z[1, 2]))
