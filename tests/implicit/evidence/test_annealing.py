"""Annealed importance sampling: transitions, weights and bounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from arcsm.implicit import Annealing, Proposal, annealed_bound, annealed_upper_bound, bidirectional_bounds
from arcsm.implicit.evidence.annealing import evaluate, transition
from small_vaes import (
    FLOAT64,
    exact_evidence,
    exact_posterior,
    linear_vae,
    normal,
    seeded,
    simulate,
    small_vae,
)


def test_transition_leaves_its_distribution_invariant() -> None:
    """The target N(v; 0, 1) e^{beta a v} is a normal distribution around beta a."""
    slope, beta, count = 1.5, 0.6, 40_000
    v = beta * slope + normal(count, 1, 1, seed=99)
    step = torch.full((count, 1), 0.9, dtype=FLOAT64)

    def log_ratio(v: Tensor) -> Tensor:
        return slope * v.sum(-1)

    point, acceptance = evaluate(log_ratio, v), []
    for index in range(5):
        previous = point.v
        point, accepted = transition(log_ratio, point, beta, step, 3, seeded(index))
        assert torch.equal(accepted, (point.v != previous).any(-1))
        acceptance.append(float(accepted.double().mean()))
    assert 0.5 < min(acceptance) <= max(acceptance) < 0.999  # some proposals are rejected
    torch.testing.assert_close(point.log_ratio, log_ratio(point.v))
    assert float(point.v.mean()) == pytest.approx(beta * slope, abs=0.02)
    assert float(point.v.var()) == pytest.approx(1.0, abs=0.03)


def test_mean_weight_is_the_evidence() -> None:
    vae, count = linear_vae(), 3_000
    x = simulate(vae, 1)[1]
    mean, covariance = exact_posterior(vae, x)
    proposal = Proposal(mean.expand(count, -1), 3.0 * torch.linalg.cholesky(covariance).expand(count, -1, -1))
    annealing = Annealing(temperatures=60, chains=1, leapfrog=2, step_size=1.0)
    bound = annealed_bound(vae, x.expand(count, -1), annealing, proposal, seeded())
    ratios = torch.exp(bound - exact_evidence(vae, x))
    error = float(ratios.std()) / count**0.5
    assert error < 0.03
    assert float(ratios.mean()) == pytest.approx(1.0, abs=3.0 * error)


def test_mean_reciprocal_weight_is_the_reciprocal_evidence_backwards() -> None:
    vae, count = linear_vae(), 3_000
    x = simulate(vae, 1)[1]
    mean, covariance = exact_posterior(vae, x)
    root = torch.linalg.cholesky(covariance)
    z = mean + (root @ normal(count, 3, 1)).squeeze(-1)
    proposal = Proposal(mean.expand(count, -1), 1.5 * root.expand(count, -1, -1))
    annealing = Annealing(temperatures=20, chains=1, leapfrog=2, step_size=1.0)
    upper = annealed_upper_bound(vae, x.expand(count, -1), z, annealing, proposal, seeded())
    ratios = torch.exp(exact_evidence(vae, x) - upper)
    error = float(ratios.std()) / count**0.5
    assert error < 0.02
    assert float(ratios.mean()) == pytest.approx(1.0, abs=3.0 * error)


def test_bounds_from_both_sides_enclose_the_evidence() -> None:
    vae = linear_vae()
    z, x = simulate(vae, 200)
    annealing = Annealing(temperatures=10, chains=2, leapfrog=2)  # deliberately too few
    truth = exact_evidence(vae, x)
    prior = Proposal.prior(200, 3, x)
    lower = annealed_bound(vae, x, annealing, prior, seeded())
    upper = annealed_upper_bound(vae, x, z, annealing, prior, seeded())
    for bound, sign in ((lower, 1.0), (upper, -1.0)):
        difference = sign * (truth - bound)
        assert float(difference.mean()) > 4.0 * float(difference.std()) / 200**0.5
    tight = bidirectional_bounds(vae, 20, Annealing(temperatures=100, chains=8, leapfrog=4), generator=seeded())
    torch.testing.assert_close(tight[0], tight[1], rtol=0.0, atol=0.1)


def test_invalid_arguments_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"z: expected latents \(5, 2\), got \(1, 2\)"):
        annealed_upper_bound(small_vae(), torch.ones(5, 16), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="temperatures: expected a positive number, got 0"):
        Annealing(temperatures=0)
