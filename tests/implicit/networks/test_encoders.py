"""Encoders: gradients, dependence on noise, moments and densities."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from arcsm.implicit import AutoregressiveEncoder, DenseTrunk, ImplicitEncoder, MaskedEncoder
from small_vaes import autoregressive_encoder, normal


def test_a_masked_encoder_maps_earlier_and_own_noise_to_each_latent() -> None:
    encoder, x = MaskedEncoder(DenseTrunk(5, (8,)), 4).double(), normal(1, 5)
    noise = normal(4, seed=1)

    def latents(values: Tensor) -> Tensor:
        return encoder(x, values.view(1, 1, 4)).flatten()

    slopes = torch.autograd.functional.jacobian(latents, noise)  # (latent, noise)
    assert torch.equal(slopes != 0.0, torch.ones(4, 4).tril().bool())
    several = encoder(x.expand(2, 5), torch.stack([noise, -noise]).view(1, 2, 4).expand(2, 2, 4))
    torch.testing.assert_close(several[1, 1], latents(-noise))


@torch.no_grad()
def test_conditional_moments_match_fine_quadrature() -> None:
    torch.manual_seed(0)
    encoder = AutoregressiveEncoder(DenseTrunk(5, (16,)), 3).double()
    encoder.output.data.mul_(20.0)  # far from normal
    precomputed = encoder.precompute(encoder.features(normal(2, 5)))
    z = encoder.draw(precomputed, normal(2, 4, 3, seed=1)).detach()
    mean, log_std = encoder.conditional_moments(precomputed, z)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(80))
    weights = weights / weights.sum()
    location, log_scale, from_input = (t.detach() for t in precomputed)
    for i, k, d in itertools.product(range(2), range(4), range(3)):
        u = (z[i, k] - location[i]) * torch.exp(-log_scale[i])
        inner = from_input[i, d] + u[:d] @ encoder.of_latents[d, :d] + nodes[:, None] * encoder.of_noise[d]
        values = location[i, d] + log_scale[i, d].exp() * (nodes + torch.tanh(inner) @ encoder.output[d])
        expected = weights @ values
        deviation = (weights @ (values - expected).square()).sqrt()
        assert abs(float(mean[i, k, d] - expected)) < 0.02 * float(deviation)
        assert float(log_std[i, k, d].exp()) == pytest.approx(float(deviation), rel=0.02)


def test_log_prob_matches_jacobian_of_monotone_maps() -> None:
    encoder = autoregressive_encoder(fold=0.5)
    x, noise = normal(4, 5), normal(4, 2, 3)
    precomputed = encoder.precompute(encoder.features(x))

    def log_volume(row: int, sample: int) -> Tensor:
        def latents(eps: Tensor) -> Tensor:
            return encoder.draw(tuple(t[row : row + 1] for t in precomputed), eps.view(1, 1, 3)).flatten()

        jacobian = torch.autograd.functional.jacobian(latents, noise[row, sample])
        assert bool((jacobian.diagonal() > 0.0).all())  # one preimage each
        return torch.linalg.slogdet(jacobian).logabsdet

    volumes = torch.stack([torch.stack([log_volume(row, sample) for sample in range(2)]) for row in range(4)])
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum(-1) - volumes
    torch.testing.assert_close(
        encoder.log_prob(precomputed, encoder.draw(precomputed, noise)), expected, rtol=0.0, atol=1e-10
    )


def test_density_of_folded_maps_integrates_to_one() -> None:
    """Importance sampling of 1: a preimage that is missed or counted twice changes the mean."""
    encoder = autoregressive_encoder(fold=2.0)
    precomputed = encoder.precompute(encoder.features(normal(1, 5)))
    with torch.no_grad():
        z = encoder.draw(precomputed, normal(1, 12_000, 3, seed=1))
    other = torch.distributions.Normal(z.mean((0, 1)), 0.7 * z.std((0, 1)))
    ratio = torch.exp(other.log_prob(z).sum(-1) - encoder.log_prob(precomputed, z))
    error = float(ratio.std()) / math.sqrt(ratio.numel())
    assert error < 0.03  # small enough to detect a sixth
    assert float(ratio.mean()) == pytest.approx(1.0, abs=4.0 * error)


def test_mismatched_trunk_is_rejected() -> None:
    with pytest.raises(ValueError, match="trunk: expected 3 extra features, got 2"):
        ImplicitEncoder(DenseTrunk(3, (4,), 2), 3)
