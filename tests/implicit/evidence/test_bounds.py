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
    Proposal,
    annealed_bound,
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


def test_bounds_match_evidence_from_prior_and_from_fitted_proposal() -> None:
    vae = linear_vae()
    _, x = simulate(vae, 6)
    evidence = exact_evidence(vae, x)
    torch.testing.assert_close(importance_bound(vae, x, 4000, generator=seeded()), evidence, rtol=0.0, atol=0.02)
    annealing = Annealing(temperatures=300, chains=128, leapfrog=5)
    from_prior = annealed_bound(vae, x, annealing, Proposal.prior(6, 3, x), seeded())
    torch.testing.assert_close(from_prior, evidence, rtol=0.0, atol=0.15)
    short = Annealing(temperatures=60, chains=256, leapfrog=5)
    fitted = annealed_bound(vae, x, short, generator=seeded())
    torch.testing.assert_close(fitted, evidence, rtol=0.0, atol=0.02)


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
    many = elbo(vae, x.repeat(12, 1), count // 10, seeded())  # more than one part
    assert many.shape == (72,)
    assert bool(((many - expected.repeat(12)).abs() < 5.0 * 10**0.5 * error.repeat(12)).all())
    assert float((error / divergence).max()) < 0.03
    with pytest.raises(ValueError, match="its encoder has no density"):
        elbo(linear_vae(encoder=ImplicitEncoder(DenseTrunk(5, (8,), 3), 3)), x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: importance_bound(small_vae(), image_rows(5)), r"x: expected zeros and ones.*vae.prepare\(rows\)"),
        (lambda: elbo(small_vae("gaussian"), torch.full((5, 16), math.nan)), "x: holds NaN"),
        (lambda: importance_bound(small_vae(), torch.ones(5, 16), samples=0), "expected whole numbers.*samples=0"),
        (
            lambda: importance_bound(small_vae(), torch.ones(5, 16), samples=10.5),
            "expected whole numbers.*samples=10.5",
        ),
    ],
)
def test_invalid_inputs_are_rejected(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
