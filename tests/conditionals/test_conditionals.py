"""Conditionals: differentiable quadrature, closed-form quantiles, evaluations."""

from __future__ import annotations

import torch
from torch import Tensor

from arcsm import AutoregressiveModel, LogisticMixtureHead
from arcsm.conditionals.conditionals import Accuracy, Conditionals
from small_models import MakeModel, points


def conditionals_at(model: AutoregressiveModel, x: Tensor, sigma: float) -> tuple[Conditionals, Tensor]:
    """Return accurately integrated conditionals of rows and their values, ``(N,)``."""
    projection = model.head.project(model.context(x)).flatten(0, 1)
    return Conditionals(model.head, projection, (sigma,), "quadrature", Accuracy(1e-8, 1024)), x.flatten()


def test_differentiable_quadrature_has_the_value_and_the_gradients_of_the_closed_form(make_model: MakeModel) -> None:
    model = make_model("gaussian")
    x = points(model, 12)
    results = []
    for function in (
        Conditionals.differentiable_log_prob,
        lambda conditionals, z: model.head.projected_log_prob(conditionals.projection, z, 0.3),
    ):  # type: ignore[operator]
        value = function(*conditionals_at(model, x, 0.3))
        results.append([value, *torch.autograd.grad(value.square().sum(), list(model.parameters()))])
    for integrated, closed in zip(*results, strict=True):
        torch.testing.assert_close(integrated, closed, rtol=1e-6, atol=1e-6)


def test_differentiable_quadrature_has_the_gradients_of_the_integrated_density(make_model: MakeModel) -> None:
    model = make_model()
    x = points(model, 6)
    conditionals, values = conditionals_at(model, x, 0.3)
    log_prob = conditionals.differentiable_log_prob(values)
    torch.testing.assert_close(log_prob, conditionals.log_prob(values), rtol=0.0, atol=1e-6)
    log_prob.sum().backward()
    for parameter in model.parameters():
        direction = torch.randn_like(parameter)
        sums = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                parameter.add_(1e-4 * sign * direction)
                moved, values = conditionals_at(model, x, 0.3)
                sums.append(moved.log_prob(values).sum())
                parameter.sub_(1e-4 * sign * direction)
        assert parameter.grad is not None
        expected = (sums[0] - sums[1]) / 2e-4
        torch.testing.assert_close((parameter.grad * direction).sum(), expected, rtol=1e-3, atol=1e-3)


def test_extreme_contexts_do_not_overflow_a_mixture() -> None:
    head = LogisticMixtureHead(context_features=2, components=3)
    projection = torch.linspace(-500.0, 500.0, 9).repeat(4, 1)
    u = torch.tensor([1e-6, 0.3, 0.7, 1.0 - 1e-6])
    x = Conditionals(head, projection, (0.1,), "closed_form").icdf(u)
    assert bool(x.isfinite().all())
    assert bool(head.projected_log_prob(projection, x, 0.1).isfinite().all())
