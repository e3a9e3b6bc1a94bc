"""Objectives: signs and gradients in float64, against autograd, closed forms and each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from arcsm import (
    MADE,
    AutoregressiveModel,
    GaussianHead,
    Head,
    LogisticMixtureHead,
    NoiseLadder,
    ScoreHead,
    objectives,
    registry,
)

HEADS = [lambda: ScoreHead(4, (8, 8)), lambda: GaussianHead(4), lambda: LogisticMixtureHead(4, 3)]


@pytest.fixture(autouse=True)
def _double() -> object:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def build(head: Head, features: int = 3, noise: NoiseLadder | None = None) -> AutoregressiveModel:
    return AutoregressiveModel(MADE(features, 4, (12,)), head, noise)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients(loss: Tensor, model: AutoregressiveModel) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, model.parameters(), strict=True)]


@pytest.mark.parametrize("make", HEADS)
def test_csm_is_equation_5_with_the_derivative_by_autograd(make: object) -> None:
    model = build(make())
    x = torch.randn(7, 3)
    context = model.context(x)
    z = x.clone().requires_grad_()
    s = model.head.score_and_derivative(context, z, None)[0]
    ds = torch.autograd.grad(s.sum(), z, create_graph=True)[0]
    by_autograd = (0.5 * s.square() + ds).sum(-1).mean()
    ours = objectives.csm(model, x)
    assert torch.allclose(ours, by_autograd, atol=1e-11)
    for mine, theirs in zip(gradients(ours, model), gradients(by_autograd, model), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-10)


@pytest.mark.parametrize("make", HEADS)
def test_sm_of_the_conditional_field_is_csm(make: object) -> None:
    model, x = build(make()), torch.randn(6, 3)
    csm, sm = objectives.csm(model, x), objectives.sm(model, x, joint=False)
    assert torch.allclose(csm, sm, atol=1e-11)
    for mine, theirs in zip(gradients(csm, model), gradients(sm, model), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-10)


@pytest.mark.parametrize("make", HEADS[1:])
def test_sm_ssm_and_csm_agree_where_dimensions_are_independent(make: object) -> None:
    model, x = build(make()), torch.randn(40, 3)
    with torch.no_grad():  # no context depends on x any more
        for layer in model.context.layers[:-1]:
            layer.weight.zero_()
    csm = objectives.csm(model, x)
    joint = objectives.sm(model, x, joint=True)
    assert torch.allclose(csm, joint, atol=1e-11)
    for law in ("rademacher", "gaussian", "sphere"):
        sliced = [objectives.ssm(model, x, 1, law, generator=seeded(i), joint=True).detach() for i in range(400)]
        values = torch.stack(sliced)
        error = values.std() / math.sqrt(len(values))
        assert abs(values.mean() - csm) < 4.5 * error + 1e-12, law


def test_joint_sm_differs_where_dimensions_depend() -> None:
    model, x = build(GaussianHead(4)), torch.randn(20, 3)
    assert not torch.allclose(objectives.sm(model, x, joint=True), objectives.sm(model, x, joint=False), atol=1e-3)


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("law", ["rademacher", "gaussian", "sphere"])
def test_ssm_averages_to_sm(law: str, reduced: bool) -> None:
    model, x = build(ScoreHead(4, (8,))), torch.randn(30, 3)
    values = torch.stack([objectives.ssm(model, x, 2, law, reduced, generator=seeded(i)).detach() for i in range(400)])
    assert abs(values.mean() - objectives.sm(model, x)) < 4.5 * values.std() / 20.0


@pytest.mark.parametrize("make", HEADS)
def test_the_family_has_one_expectation(make: object) -> None:
    model = build(make(), noise=NoiseLadder(1.0, 0.2, 4))
    x = torch.randn(50, 3).repeat(40, 1)
    with torch.no_grad():
        draws = [
            torch.stack([objectives.csm(model, x, mix, generator=seeded(i)) for i in range(40)])
            for mix in (1.0, 0.5, 0.0, "auto")
        ]
    for values in draws[1:]:
        difference = values - draws[0]  # same noise, so only Stein's identity is between them
        assert abs(difference.mean()) < 4.5 * difference.std() / math.sqrt(len(difference))
        assert difference.std() > 0


def test_dsm_is_mix_zero_up_to_a_constant() -> None:
    model = build(ScoreHead(4, (8, 8)), noise=NoiseLadder(1.0, 0.2, 4))
    x = torch.randn(9, 3)
    dsm = objectives.dsm(model, x, generator=seeded(3))
    csm = objectives.csm(model, x, mix=0.0, generator=seeded(3))
    assert dsm > csm
    for mine, theirs in zip(gradients(dsm, model), gradients(csm, model), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-11)


def test_dsm_at_a_given_sigma_is_minimised_by_the_noisy_gaussian() -> None:
    """For x ~ N(0, 1) and noise sigma the best linear score -a x has a = 1 / (1 + sigma^2)."""
    sigma = 0.7
    model = AutoregressiveModel(MADE(1, 1, ()), GaussianHead(1))
    x = torch.randn(400_000, 1, generator=seeded(1))
    log_std = torch.linspace(-0.4, 0.8, 61)
    losses = []
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for value in log_std:
            model.head.parameters_of.bias[1] = value
            losses.append(float(objectives.dsm(model, x, sigma, generator=seeded(2))))
    best = float(log_std[int(torch.tensor(losses).argmin())])
    assert math.exp(2 * best) == pytest.approx(1.0 + sigma**2, rel=0.05)


def test_csm_of_a_gaussian_is_minimised_at_its_moments() -> None:
    """J(mu, v) = ((m - mu)^2 + var) / (2 v^2) - 1 / v: stationary at mu = m, v = var, where J = -1 / (2 v)."""
    model = AutoregressiveModel(MADE(1, 1, ()), GaussianHead(1))
    x = 3.0 + 0.5 * torch.randn(1000, 1, generator=seeded(4))
    mean, var = float(x.mean()), float(x.var(unbiased=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.head.parameters_of.bias[0] = mean
        raw = math.log(math.expm1(0.5 * math.log(var) + 7.0)) - 7.0  # undo the smooth floor
        model.head.parameters_of.bias[1] = raw
    loss = objectives.csm(model, x)
    assert float(loss.detach()) == pytest.approx(-0.5 / var, rel=1e-9)
    gradient = torch.autograd.grad(loss, model.head.parameters_of.bias)[0]
    assert torch.allclose(gradient, torch.zeros(2), atol=1e-9)


def test_automatic_mix_has_no_more_gradient_variance_than_both_ends() -> None:
    model = build(ScoreHead(4, (16, 16), sinusoids=4, max_frequency=5.0), noise=NoiseLadder(2.0, 0.1, 6))
    x = torch.randn(512, 3, generator=seeded(5))

    def variance(mix: float | str) -> float:
        draws = []
        for i in range(40):
            loss = objectives.csm(model, x, mix, generator=seeded(i))
            by_context = torch.autograd.grad(loss, list(model.context.parameters()))
            draws.append(torch.cat([g.flatten() for g in by_context]))
        return float(torch.stack(draws).var(0).sum())

    assert variance("auto") < 1.1 * min(variance(0.0), variance(1.0))


@pytest.mark.parametrize("make", HEADS)
def test_mle_is_the_negative_log_likelihood_and_its_gradient_is_right(make: object) -> None:
    model = build(make())
    model.set_standardisation([0.5, -1.0, 0.0], [2.0, 0.5, 1.0])
    x = torch.randn(5, 3)
    options = {"tol": 1e-9, "max_evaluations": 512}
    loss = objectives.mle(model, x, **options)
    assert torch.allclose(loss, -model.log_prob(x, **options).mean(), atol=1e-8)
    parameter = next(iter(model.head.parameters()))
    analytic = torch.autograd.grad(loss, parameter)[0]
    direction = torch.randn_like(parameter)
    with torch.no_grad():
        parameter.add_(1e-5 * direction)
        up = objectives.mle(model, x, **options)
        parameter.sub_(2e-5 * direction)
        down = objectives.mle(model, x, **options)
        parameter.add_(1e-5 * direction)
    assert float((up - down) / 2e-5) == pytest.approx(float((analytic * direction).sum()), rel=1e-4, abs=1e-7)


def test_x_with_a_gradient_gets_one() -> None:
    model = build(ScoreHead(4, (8,)))
    x = torch.randn(4, 3, requires_grad=True)
    objectives.csm(model, x).backward()
    assert x.grad is not None
    assert bool((x.grad != 0).all())


def test_the_same_generator_gives_the_same_loss_and_the_global_one_is_untouched() -> None:
    model = build(ScoreHead(4, (8,)), noise=NoiseLadder(1.0, 0.1, 3))
    x = torch.randn(4, 3)
    state = torch.get_rng_state()
    for name, objective in registry.parts("objective").items():
        assert objective(model, x, generator=seeded(1)) == objective(model, x, generator=seeded(1)), name
    assert torch.equal(state, torch.get_rng_state())


def test_condition_reaches_every_objective() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,), classes=3), GaussianHead(4))
    x, labels = torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1])
    for name, objective in registry.parts("objective").items():
        options = {"sigma": 0.3} if name == "dsm" else {}
        first = objective(model, x, condition=labels, generator=seeded(0), **options)
        second = objective(model, x, condition=labels.flip(0), generator=seeded(0), **options)
        assert first != second, name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: objectives.csm(m, x, mix=0.5), "mix: without a noise ladder"),
        (lambda m, x: objectives.dsm(m, x), "sigma: expected a number"),
        (lambda m, x: objectives.dsm(m, x, sigma=-1.0), "sigma: expected a positive number"),
        (lambda m, x: objectives.ssm(m, x, slices=0), "slices: expected at least 1"),
        (lambda m, x: objectives.ssm(m, x, projections="cube"), "projections: expected"),
        (lambda m, x: objectives.sm(m, x, joint=True), "joint: the joint score needs a normalised head"),
        (lambda m, x: objectives.csm(m, x * math.nan), "x: contains NaN"),
    ],
)
def test_mistakes_are_named(call: object, message: str) -> None:
    model = build(ScoreHead(4, (8,)))
    with pytest.raises(ValueError, match=message):
        call(model, torch.randn(3, 3))


def test_dsm_refuses_what_it_would_leave_unheard() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,), missing=True), GaussianHead(4), NoiseLadder(1.0, 0.1, 4))
    x = torch.randn(8, 2)
    with pytest.raises(ValueError, match=r"joint: .* give dsm a sigma"):
        objectives.dsm(model, x, joint=True)
    x[3, 1] = torch.nan
    assert bool(objectives.dsm(model, x).isfinite())
    with pytest.raises(ValueError, match="missing values"):
        objectives.dsm(model, x, sigma=0.3)
