"""Annealed importance sampling: schedule, transitions, steps, weights and bounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from arcsm.implicit import Annealing, Proposal, annealed_bound, annealed_upper_bound, bidirectional_bounds
from arcsm.implicit.evidence.annealing import adapted_step, evaluate, posterior_log_ratio, transition
from small_vaes import (
    FLOAT64,
    exact_evidence,
    exact_posterior,
    image_rows,
    linear_vae,
    normal,
    seeded,
    simulate,
    small_vae,
)


@pytest.mark.parametrize("temperatures", [1, 2, 60])
def test_schedule_is_a_sigmoid(temperatures: int) -> None:
    betas = torch.tensor(Annealing(temperatures=temperatures).schedule(), dtype=FLOAT64)
    assert len(betas) == temperatures + 1
    assert betas[0] == 0.0
    assert betas[-1] == 1.0
    torch.testing.assert_close(betas + betas.flip(0), torch.ones_like(betas))
    steps = betas.diff()
    assert bool((steps > 0.0).all())
    if temperatures == 60:  # the slope of a sigmoid at its middle and at its ends
        middle, end = (1.0 / (2.0 + 2.0 * math.cosh(t)) for t in (0.0, 4.0))
        assert float(steps[29] / steps[0]) == pytest.approx(middle / end, rel=0.07)


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


@pytest.mark.parametrize("start", [0.03, 2.0])
def test_steps_adapt_to_the_target_acceptance(start: float) -> None:
    def log_ratio(v: Tensor) -> Tensor:
        return v.new_zeros(v.shape[:2]) - 2.0 * v.square().sum(-1)

    point = evaluate(log_ratio, normal(400, 1, 12, seed=1))
    step = torch.full((400, 1), start, dtype=FLOAT64)
    acceptance, generator = [], seeded()
    for _ in range(300):
        point, accepted = transition(log_ratio, point, 1.0, step, 3, generator)
        step = adapted_step(step, accepted)
        acceptance.append(float(accepted.double().mean()))
    assert abs(acceptance[0] - 0.65) > 0.3
    assert sum(acceptance[-50:]) / 50 == pytest.approx(0.65, abs=0.02)


def test_mean_weight_is_the_evidence() -> None:
    """If a chain's steps depended on its own history, the mean would be too small by more than a tenth."""
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

    log_ratio = posterior_log_ratio(vae, x.expand(count, -1), proposal)
    point, weights = evaluate(log_ratio, normal(count, 1, 3, seed=1)), torch.zeros(count, 1, dtype=FLOAT64)
    step, generator = torch.ones(count, 1, dtype=FLOAT64), seeded(2)
    for lower, upper in itertools.pairwise(annealing.schedule()):
        weights = weights + (upper - lower) * point.log_ratio
        point, accepted = transition(log_ratio, point, upper, step, 2, generator)
        step = adapted_step(step, accepted)
    assert float(torch.exp(weights[:, 0] - exact_evidence(vae, x)).mean()) < 0.9


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: annealed_bound(small_vae(), image_rows(5)), "x: expected zeros and ones"),
        (
            lambda: annealed_upper_bound(small_vae(), torch.ones(5, 16), torch.zeros(1, 2)),
            r"z: expected latents \(5, 2\), got \(1, 2\)",
        ),
        (lambda: Annealing(temperatures=0), "temperatures: expected a positive number, got 0"),
        (lambda: Annealing(step_size=-1.0), "step_size: expected a positive number"),
    ],
)
def test_invalid_arguments_are_rejected(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
