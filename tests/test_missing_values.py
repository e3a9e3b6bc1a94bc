"""Missing values: contexts see a mask, losses and likelihoods cover the known values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from arcsm import (
    MADE,
    AutoregressiveModel,
    GaussianHead,
    LogisticMixtureHead,
    NoiseLadder,
    ScoreHead,
    TrainConfig,
    fit,
    objectives,
)

NAN = math.nan


def rows(count: int) -> Tensor:
    return 1.0 + torch.randn(count, 3, generator=torch.Generator().manual_seed(0)).cumsum(1)


def gaps_model() -> AutoregressiveModel:
    torch.manual_seed(0)
    return AutoregressiveModel(MADE(3, 8, (32,), missing=True, hide=0.4), GaussianHead(8))


@pytest.mark.parametrize("sinusoids", [0, 2])
def test_contexts_distinguish_a_missing_value_from_zero(sinusoids: int) -> None:
    torch.manual_seed(0)
    made = MADE(4, 3, (16, 16), order=(2, 0, 3, 1), sinusoids=sinusoids, missing=True).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    gap = x.clone()
    gap[:, 0] = NAN
    whole, incomplete = made(x), made(gap)
    assert bool(incomplete.isfinite().all())
    for feature in (2, 0):  # first in the order, and the missing one itself
        assert torch.equal(whole[:, feature], incomplete[:, feature])
    zero = x.clone()
    zero[:, 0] = 0.0
    assert float((made(zero)[:, 3] - incomplete[:, 3]).detach().abs().min()) > 1e-6  # zero is a value like any other

    state = made.begin((5,))
    previous = None
    for d in made.order:
        torch.testing.assert_close(made.step(state, previous), incomplete[:, d], rtol=0.0, atol=1e-12)
        previous = gap[:, d]


def test_values_are_masked_only_in_training() -> None:
    torch.manual_seed(0)
    made = MADE(4, 3, (16,), missing=True, hide=0.5)
    x = torch.randn(2000, 4)
    hidden = made.masking(x)
    share = hidden.isnan().double().mean()
    assert 0.2 < float(share) < 0.3  # half of the rows, on average half of their values
    assert torch.equal(torch.where(hidden.isnan(), x, hidden), x)
    made.eval()
    assert torch.equal(made.masking(x), x)


@pytest.mark.parametrize(
    ("noise", "head"), [(None, ScoreHead(4, (8,))), (NoiseLadder(1.0, 0.1, 5), LogisticMixtureHead(4, 2))]
)
def test_losses_ignore_missing_values(noise: NoiseLadder | None, head: ScoreHead | LogisticMixtureHead) -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(MADE(3, 4, (8,), missing=True), head, noise).double()
    x = rows(40).double()
    x[::2, 1] = NAN
    x[5] = NAN
    known = torch.cat([x[:5], x[6:]])
    for objective in (objectives.csm, objectives.mle):
        whole = objective(model, x.clone(), generator=torch.Generator().manual_seed(0))
        whole.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert bool(whole.isfinite())
        assert all(bool(g.isfinite().all()) for g in gradients)
        model.zero_grad()
    if noise is None:
        difference = objectives.csm(model, x) * len(x) - objectives.csm(model, known) * len(known)
        assert float(difference.detach().abs()) < 1e-9  # an empty row contributes nothing


def test_score_matching_of_the_joint_density_rejects_missing_values() -> None:
    model = AutoregressiveModel(MADE(3, 4, (8,), missing=True), ScoreHead(4, (8,)))
    x = rows(4)
    x[0, 0] = NAN
    for objective in (objectives.ssm, objectives.sm):
        with pytest.raises(ValueError, match="missing values"):
            objective(model, x)
    with pytest.raises(ValueError, match="contains infinity"):
        objectives.csm(model, x / 0.0)
    with pytest.raises(ValueError, match="NaN or infinity"):
        objectives.csm(AutoregressiveModel(MADE(3, 4, (8,)), ScoreHead(4, (8,))), x)


def test_missing_values_add_nothing_to_the_likelihood() -> None:
    model, gaps = gaps_model(), rows(20)
    gaps[torch.rand(gaps.shape) < 0.4] = NAN
    terms = model.log_prob(gaps, reduce=False)
    assert torch.equal(terms == 0.0, gaps.isnan())
    assert torch.equal(model.cdf(gaps).isnan(), gaps.isnan())


def test_known_values_standardise_the_columns() -> None:
    x = rows(500)
    x[::3, 1] = NAN
    model = AutoregressiveModel(MADE(3, 4, (8,), missing=True), GaussianHead(4))
    fit(model, x, config=TrainConfig(steps=1, device="cpu"))
    torch.testing.assert_close(model.shift, x.nanmean(0))
    x[:, 1] = NAN
    with pytest.raises(ValueError, match="column 1 holds nothing but missing values"):
        fit(model, x, config=TrainConfig(steps=1, device="cpu"))
