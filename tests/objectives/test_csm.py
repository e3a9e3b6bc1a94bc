"""Composite score matching: paper Eq. 5, and the family of objectives with the same expectation."""

import math

import pytest
import torch

from arcsm import MADE, AutoregressiveModel, GaussianHead, NoiseLadder, ScoreHead, objectives
from small_objectives import HEADS, build, gradients, seeded

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize("kind", HEADS)
def test_csm_is_equation_5_with_the_derivative_by_autograd(kind: str) -> None:
    model = build(HEADS[kind]())
    x = torch.randn(7, 3)
    context = model.context(x)
    z = x.clone().requires_grad_()
    s = model.head.score_and_derivative(context, z, None)[0]
    ds = torch.autograd.grad(s.sum(), z, create_graph=True)[0]
    expected = (0.5 * s.square() + ds).sum(-1).mean()
    loss = objectives.csm(model, x)
    assert torch.allclose(loss, expected, atol=1e-11)
    for gradient, reference in zip(gradients(loss, model), gradients(expected, model), strict=True):
        assert torch.allclose(gradient, reference, atol=1e-10)


@pytest.mark.parametrize("kind", ["score", "mixture"])
def test_all_mixes_have_the_same_expectation(kind: str) -> None:
    model = build(HEADS[kind](), noise=NoiseLadder(1.0, 0.2, 4))
    x = torch.randn(20, 3).repeat(20, 1)
    with torch.no_grad():
        losses = [
            torch.stack([objectives.csm(model, x, mix, generator=seeded(i)) for i in range(20)])
            for mix in (1.0, 0.5, 0.0, "auto")
        ]
    for values in losses[1:]:
        difference = values - losses[0]  # same noise: they differ only by Stein's identity
        assert abs(difference.mean()) < 4.5 * difference.std() / math.sqrt(len(difference))
        assert difference.std() > 0


def test_csm_of_a_gaussian_is_minimised_at_its_moments() -> None:
    """J(mu, v) = ((m - mu)^2 + var) / (2 v^2) - 1 / v: stationary at mu = m, v = var, where J = -1 / (2 v)."""
    model = AutoregressiveModel(MADE(1, 1, ()), GaussianHead(1))
    x = 3.0 + 0.5 * torch.randn(1000, 1, generator=seeded(4))
    mean, var = float(x.mean()), float(x.var(unbiased=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.head.parameters_of.bias[0] = mean
        raw = math.log(math.expm1(0.5 * math.log(var) + 7.0)) - 7.0  # invert the smooth minimum
        model.head.parameters_of.bias[1] = raw
    loss = objectives.csm(model, x)
    assert float(loss.detach()) == pytest.approx(-0.5 / var, rel=1e-9)
    gradient = torch.autograd.grad(loss, model.head.parameters_of.bias)[0]
    assert torch.allclose(gradient, torch.zeros(2), atol=1e-9)


def test_automatic_mix_has_no_more_gradient_variance_than_either_end() -> None:
    model = build(ScoreHead(4, (16, 16), sinusoids=4, max_frequency=5.0), noise=NoiseLadder(2.0, 0.1, 6))
    x = torch.randn(512, 3, generator=seeded(5))

    def variance(mix: float | str) -> float:
        losses = []
        for i in range(40):
            loss = objectives.csm(model, x, mix, generator=seeded(i))
            gradients_of_context = torch.autograd.grad(loss, list(model.context.parameters()))
            losses.append(torch.cat([g.flatten() for g in gradients_of_context]))
        return float(torch.stack(losses).var(0).sum())

    assert variance("auto") < 1.1 * min(variance(0.0), variance(1.0))
