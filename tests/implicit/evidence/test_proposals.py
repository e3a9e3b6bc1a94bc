"""Proposals fitted to posteriors that are known, and tempered weights."""

from __future__ import annotations

import math

import pytest
import torch

from arcsm.implicit import fit_proposal, importance_bound
from arcsm.implicit.evidence import proposals
from arcsm.implicit.evidence.proposals import tempered_weights
from small_vaes import (
    FLOAT64,
    NarrowEncoder,
    exact_evidence,
    exact_posterior,
    linear_vae,
    normal,
    seeded,
    simulate,
)


def test_fitted_proposal_matches_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = linear_vae()
    _, x = simulate(vae, 6)
    monkeypatch.setattr(proposals, "MAX_ELEMENTS", 2 * 4000 * 3)  # fitted in parts
    proposal = fit_proposal(vae, x, samples=4000, generator=seeded())
    mean, covariance = exact_posterior(vae, x)
    torch.testing.assert_close(proposal.mean, mean, rtol=0.0, atol=0.03)
    fitted = proposal.scale @ proposal.scale.transpose(1, 2)
    torch.testing.assert_close(fitted, covariance.expand(6, -1, -1), rtol=0.1, atol=0.01)
    with pytest.raises(ValueError, match=r"x: expected inputs \(B, 5\), got \(5, 9\)"):
        fit_proposal(vae, torch.ones(5, 9))


def test_proposal_widens_from_collapsed_encoder() -> None:
    vae = linear_vae(24, 48)
    vae.encoder = NarrowEncoder(vae)
    _, x = simulate(vae, 8)
    bound = importance_bound(vae, x, 2000, generator=seeded())
    torch.testing.assert_close(bound, exact_evidence(vae, x), rtol=0.0, atol=0.25)


def test_weights_are_tempered_until_an_eighth_of_the_samples_are_effective() -> None:
    log_weights = torch.stack([200.0 * normal(1000), 0.1 * normal(1000), torch.zeros(1000, dtype=FLOAT64)])
    weights, power = tempered_weights(log_weights)
    effective = 1.0 / weights.square().sum(1)
    assert float(effective[0]) == pytest.approx(125.0, rel=0.01)
    assert float(effective[1]) > 125.0
    assert 0.0 < float(power[0]) < 0.05
    assert power[1:].tolist() == [1.0, 1.0]
    torch.testing.assert_close(weights[1], torch.softmax(log_weights[1], 0))
    torch.testing.assert_close(tempered_weights(log_weights + 7.0)[0], weights)


@pytest.mark.parametrize("count", [1, 100])
def test_non_finite_and_single_weights_are_tempered(count: int) -> None:
    log_weights = torch.full((4, count), -math.inf)
    log_weights[0, 0] = 3.0  # the only weight
    log_weights[1, 0] = math.inf
    log_weights[2] = math.nan
    weights, power = tempered_weights(log_weights)
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    assert bool(((power > 0.0) & (power <= 1.0)).all())
    assert bool((1.0 / weights.square().sum(1) >= min(count, 2) - 0.01).all())
    assert bool((weights[:2].argmax(1) == 0).all())
