"""Missing values: contexts see a mask, losses and likelihoods cover the known values, particles fill in the rest."""

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
from arcsm.denoise import MissingValues, particle_filter

NAN = math.nan
COVARIANCE = torch.tensor([[1.0, 0.8, 0.3], [0.8, 1.0, 0.5], [0.3, 0.5, 1.0]])
MEAN = torch.tensor([1.0, -2.0, 3.0])


def gaussian(dims: list[int]) -> torch.distributions.MultivariateNormal:
    return torch.distributions.MultivariateNormal(MEAN[dims], COVARIANCE[dims][:, dims])


def rows(count: int, seed: int = 0) -> Tensor:
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return MEAN + noise @ torch.linalg.cholesky(COVARIANCE).T


@pytest.fixture(scope="module")
def model() -> AutoregressiveModel:
    """Train on rows of which a fifth of the values is missing and more are masked."""
    torch.manual_seed(0)
    made = MADE(3, 8, (32,), missing=True, hide=0.4)
    model = AutoregressiveModel(made, GaussianHead(8)).float()
    x = rows(20_000)
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.2] = NAN
    config = TrainConfig(objective="mle", steps=1500, batch_size=256, learning_rate=5e-3, device="cpu")
    fit(model, x, x[:500], config)
    return model


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


@pytest.mark.parametrize("noise", [None, NoiseLadder(1.0, 0.1, 5)])
@pytest.mark.parametrize("head", [ScoreHead(4, (8,)), LogisticMixtureHead(4, 2)])
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
    with pytest.raises(ValueError, match="hide: expected 0"):
        MADE(3, hide=0.1)
    with pytest.raises(ValueError, match="hide: expected a share"):
        MADE(3, missing=True, hide=0.7)


@pytest.mark.parametrize("known", [[0], [1], [2], [0, 2], [1, 2], [0, 1, 2]])
def test_the_likelihood_is_that_of_the_known_values(model: AutoregressiveModel, known: list[int]) -> None:
    x = rows(500, seed=7)
    gaps = torch.full_like(x, NAN)
    gaps[:, known] = x[:, known]
    terms = model.log_prob(gaps, reduce=False)
    assert torch.equal(terms[:, [d for d in range(3) if d not in known]], torch.zeros(500, 3 - len(known)))
    truth = gaussian(known).log_prob(x[:, known])
    assert float((terms.sum(1) - truth).detach().abs().mean()) < 0.06
    assert torch.equal(model.cdf(gaps).isnan(), gaps.isnan())


def test_particles_condition_on_values_before_and_after(model: AutoregressiveModel) -> None:
    """Draw the first value given the last two, against the order of the chain rule."""
    x = rows(40, seed=9)
    gaps = x.clone()
    gaps[:, 0] = NAN
    found = particle_filter(model, gaps, MissingValues(), 1000, torch.Generator().manual_seed(0), threshold=0.0)
    inverse = torch.linalg.inv(COVARIANCE[1:, 1:])
    mean = MEAN[0] + (x[:, 1:] - MEAN[1:]) @ inverse @ COVARIANCE[1:, 0]
    variance = COVARIANCE[0, 0] - COVARIANCE[0, 1:] @ inverse @ COVARIANCE[1:, 0]
    weights = found.weights.to(x)
    drawn = found.candidates[..., 0]
    drawn_mean = (weights * drawn).sum(1)
    spread = (weights * (drawn - drawn_mean[:, None]).square()).sum(1)
    assert float((drawn_mean - mean).abs().mean()) < 0.08
    assert float(spread.mean()) == pytest.approx(float(variance), rel=0.15)
    torch.testing.assert_close(found.candidates[..., 1:], gaps[:, None, 1:].expand(-1, 1000, -1), rtol=0.0, atol=1e-5)
    truth = gaussian([1, 2]).log_prob(x[:, 1:])
    assert float((found.log_evidence - truth).abs().mean()) < 0.06


def test_a_model_with_missing_values_is_restored_from_its_configuration(model: AutoregressiveModel) -> None:
    restored = AutoregressiveModel.from_config(model.config())
    assert restored.context.missing
    restored.load_state_dict(model.state_dict())
    x = torch.tensor([[0.0, NAN, 1.0]])
    assert torch.equal(restored.eval().log_prob(x), model.eval().log_prob(x))


def test_known_values_standardise_the_columns() -> None:
    x = rows(500)
    x[::3, 1] = NAN
    model = AutoregressiveModel(MADE(3, 4, (8,), missing=True), GaussianHead(4))
    fit(model, x, config=TrainConfig(steps=1, device="cpu"))
    torch.testing.assert_close(model.shift, x.nanmean(0))
    x[:, 1] = NAN
    with pytest.raises(ValueError, match="column 1 holds nothing but missing values"):
        fit(model, x, config=TrainConfig(steps=1, device="cpu"))
