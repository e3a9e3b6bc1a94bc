"""Maximum likelihood."""

import pytest
import torch

from arcsm import objectives
from small_objectives import HEADS, build

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize("kind", HEADS)
def test_mle_is_the_negative_log_likelihood_and_has_its_gradient(kind: str) -> None:
    model = build(HEADS[kind]())
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
