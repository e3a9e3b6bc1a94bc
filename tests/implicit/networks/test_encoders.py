"""Encoders: gradients, dependence on noise, moments and densities."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from arcsm.implicit import AutoregressiveEncoder, DenseTrunk, Encoder, GaussianEncoder, ImplicitEncoder, MaskedEncoder
from small_vaes import FLOAT64, autoregressive_encoder, normal


def encoders() -> list[Encoder]:
    torch.manual_seed(0)
    trunk = DenseTrunk(5, (8,))
    implicit = ImplicitEncoder(DenseTrunk(5, (8,), 3), 3)
    return [GaussianEncoder(trunk, 3), AutoregressiveEncoder(trunk, 3), implicit, MaskedEncoder(DenseTrunk(5, (8,)), 3)]


@pytest.mark.parametrize("encoder", encoders())
def test_gradient_reaches_every_weight(encoder: Encoder) -> None:
    encoder(torch.randn(4, 5), torch.randn(4, 6, 3)).square().sum().backward()
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None, name
        assert bool((weight.grad != 0).any()), name


def test_a_masked_encoder_maps_earlier_and_own_noise_to_each_latent() -> None:
    torch.manual_seed(0)
    encoder, x = MaskedEncoder(DenseTrunk(5, (8,)), 4).double(), normal(1, 5)
    noise = normal(4, seed=1)

    def latents(values: Tensor) -> Tensor:
        return encoder(x, values.view(1, 1, 4)).flatten()

    slopes = torch.autograd.functional.jacobian(latents, noise)  # (latent, noise)
    assert torch.equal(slopes != 0.0, torch.ones(4, 4).tril().bool())
    several = encoder(x.expand(2, 5), torch.stack([noise, -noise]).view(1, 2, 4).expand(2, 2, 4))
    torch.testing.assert_close(several[1, 1], latents(-noise))


def test_later_latents_depend_on_noise_through_earlier_latents_only() -> None:
    """Two noise values that map to the same first latent give the same second one: e - 3 tanh(2 e) is zero twice."""
    torch.manual_seed(0)
    encoder = AutoregressiveEncoder(DenseTrunk(5, (8,)), 2, units=1).double()
    with torch.no_grad():
        encoder.of_input.weight[0], encoder.of_input.bias[0] = 0.0, 0.0
        encoder.of_noise[0], encoder.output[0] = 2.0, -3.0
    low, high = 1.0, 4.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if middle - 3.0 * math.tanh(2.0 * middle) < 0.0 else (low, middle)
    x = normal(1, 5).expand(2, -1)
    z = encoder(x, torch.tensor([[[0.0, 0.7]], [[low, 0.7]]], dtype=FLOAT64))
    torch.testing.assert_close(z[0], z[1])
    other = encoder(x, torch.tensor([[[0.5, 0.7]], [[low, 0.7]]], dtype=FLOAT64))
    assert float((other[0, 0, 1] - other[1, 0, 1]).detach().abs()) > 1e-4

    noise = normal(1, 1, 2, seed=3)
    jacobian = torch.autograd.functional.jacobian(lambda e: encoder(x[:1], e), noise).squeeze()
    assert float(jacobian[0, 1]) == 0.0
    assert float(jacobian[1, 0]) != 0.0


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


@pytest.mark.parametrize("fold", [0.5, 2.0])
def test_density_of_folded_maps_integrates_to_one(fold: float) -> None:
    """Importance sampling of 1: a preimage that is missed or counted twice changes the mean."""
    encoder = autoregressive_encoder(fold=fold)
    precomputed = encoder.precompute(encoder.features(normal(1, 5)))
    with torch.no_grad():
        z = encoder.draw(precomputed, normal(1, 12_000, 3, seed=1))
    other = torch.distributions.Normal(z.mean((0, 1)), 0.7 * z.std((0, 1)))
    ratio = torch.exp(other.log_prob(z).sum(-1) - encoder.log_prob(precomputed, z))
    error = float(ratio.std()) / math.sqrt(ratio.numel())
    assert error < 0.03  # small enough to detect a sixth
    assert float(ratio.mean()) == pytest.approx(1.0, abs=4.0 * error)


def test_density_of_encoder_narrower_than_rounding() -> None:
    encoder = autoregressive_encoder().float()
    x, noise = normal(1, 5).float(), normal(1, 50, 3, seed=1).float()
    precomputed = encoder.precompute(encoder.features(x))
    location, log_scale, from_input = precomputed
    wide, wide_log_prob = encoder.draw_with_log_prob(precomputed, noise)
    torch.testing.assert_close(wide, encoder.draw(precomputed, noise))
    again = encoder.log_prob(precomputed, encoder.draw(precomputed, noise))
    torch.testing.assert_close(wide_log_prob, again, rtol=0.0, atol=1e-3)
    narrow = (location, log_scale - 20.0, from_input)
    z, log_prob = encoder.draw_with_log_prob(narrow, noise)
    torch.testing.assert_close(z, encoder.draw(narrow, noise))
    torch.testing.assert_close(log_prob, wide_log_prob + 3.0 * 20.0)


def test_density_in_single_precision_matches_double() -> None:
    encoder = AutoregressiveEncoder(DenseTrunk(5, (16,)), 3, 6)
    encoder.load_state_dict(autoregressive_encoder(fold=3.0).float().state_dict())
    x, noise = normal(10, 5).float(), normal(10, 200, 3, seed=1).float()
    z, log_prob = encoder.draw_with_log_prob(encoder.precompute(encoder.features(x)), noise)
    torch.testing.assert_close(z, encoder(x, noise), rtol=1e-4, atol=1e-4)
    precomputed = tuple(t.double() for t in encoder.precompute(encoder.features(x)))
    encoder.double()
    expected = encoder.log_prob(precomputed, encoder.draw(precomputed, noise.double()))
    assert z.dtype == log_prob.dtype == torch.float32
    close = (log_prob - expected).abs() < 1e-3
    assert float(close.double().mean()) > 0.999  # a value rounded across a fold differs
    assert abs(float((log_prob - expected).mean())) < 1e-3


def test_mismatched_trunk_is_rejected() -> None:
    with pytest.raises(ValueError, match="trunk: expected 3 extra features, got 2"):
        ImplicitEncoder(DenseTrunk(3, (4,), 2), 3)
