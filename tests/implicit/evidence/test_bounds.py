"""Bounds of the evidence against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from arcsm.implicit import (
    Annealing,
    DenseTrunk,
    ImplicitEncoder,
    bounds,
    elbo,
    importance_bound,
)
from arcsm.implicit.networks.encoders import LocationScaleEncoder
from small_vaes import (
    exact_evidence,
    exact_posterior,
    gaussian_encoder,
    image_rows,
    linear_autoregressive_encoder,
    linear_vae,
    seeded,
    simulate,
    small_vae,
)


def test_both_bounds_match_evidence() -> None:
    vae = linear_vae()
    _, x = simulate(vae, 60)
    importance, annealed = bounds(vae, x, 1000, Annealing(temperatures=30, chains=32), seeded())
    evidence = exact_evidence(vae, x)
    torch.testing.assert_close(importance, evidence, rtol=0.0, atol=0.05)
    torch.testing.assert_close(annealed, evidence, rtol=0.0, atol=0.05)
    assert [part.shape for part in bounds(vae, x[:0])] == [(0,), (0,)]


@pytest.mark.parametrize("build", [gaussian_encoder, linear_autoregressive_encoder])
def test_elbo_is_below_evidence_by_the_divergence(build: Callable[[], LocationScaleEncoder]) -> None:
    encoder = build()
    vae = linear_vae(encoder=encoder)
    _, x = simulate(vae, 6)
    with torch.no_grad():
        location, log_scale = encoder.location_scale(encoder.features(x))
    mean, covariance = exact_posterior(vae, x)
    encoding = torch.distributions.MultivariateNormal(location, scale_tril=torch.diag_embed(log_scale.exp()))
    exact = torch.distributions.MultivariateNormal(mean, covariance)
    divergence = torch.distributions.kl_divergence(encoding, exact)
    count = 5_000
    z = encoding.sample((count,)).transpose(0, 1)
    with torch.no_grad():
        error = (vae.log_joint(x, z) - encoding.log_prob(z.transpose(0, 1)).T).std(1) / math.sqrt(count)
    expected = exact_evidence(vae, x) - divergence
    assert bool(((elbo(vae, x, count, seeded()) - expected).abs() < 5.0 * error).all())
    assert float((error / divergence).max()) < 0.03
    with pytest.raises(ValueError, match="its encoder has no density"):
        elbo(linear_vae(encoder=ImplicitEncoder(DenseTrunk(5, (8,), 3), 3)), x)


def test_invalid_inputs_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"x: expected zeros and ones.*vae.prepare\(rows\)"):
        importance_bound(small_vae(), image_rows(5))
    with pytest.raises(ValueError, match=r"expected whole numbers.*samples=0"):
        importance_bound(small_vae(), torch.ones(5, 16), samples=0)
