"""Encoders: gradients, dependence on noise, moments and densities."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from arcsm.implicit import DenseTrunk, MaskedEncoder
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
