"""What all objectives have in common: random numbers, conditions, and errors."""

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, GaussianHead, MixedHead, NoiseLadder, ScoreHead, objectives, registry
from small_objectives import HEADS, build, seeded

pytestmark = pytest.mark.usefixtures("double_precision")

OBJECTIVES: dict[str, Any] = {name: getattr(objectives, name) for name in objectives.__all__}
_EXACT = {"tol": 1e-11, "max_evaluations": 1024}  # of an integration


def test_generator_determines_the_loss_and_the_global_one_is_untouched() -> None:
    model = build(ScoreHead(4, (8,)), noise=NoiseLadder(1.0, 0.1, 3))
    x = torch.randn(4, 3)
    state = torch.get_rng_state()
    for name, objective in OBJECTIVES.items():
        assert objective(model, x, generator=seeded(1)) == objective(model, x, generator=seeded(1)), name
    assert torch.equal(state, torch.get_rng_state())


def test_condition_reaches_every_objective() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,), classes=3), GaussianHead(4))
    x, labels = torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1])
    for name, objective in OBJECTIVES.items():
        options = {"sigma": 0.3} if name == "dsm" else {}
        loss = objective(model, x, condition=labels, generator=seeded(0), **options)
        other_loss = objective(model, x, condition=labels.flip(0), generator=seeded(0), **options)
        assert loss != other_loss, name


@pytest.mark.parametrize(
    ("name", "head", "options"),
    [
        *((name, head, {}) for name in ("csm", "sm", "ssm") for head in (HEADS["score"], HEADS["gaussian"])),
        ("dsm", HEADS["score"], {"sigma": 0.4}),
        ("mle", lambda: MixedHead([ScoreHead(4, (8,), sinusoids=2), GaussianHead(4)], (0, 1, 0)), _EXACT),
    ],
)
def test_gradients_by_values_are_finite_differences(name: str, head: Any, options: dict[str, Any]) -> None:
    model = build(head().double(), noise=NoiseLadder(1.0, 0.3, 3))
    x, directions = torch.randn(4, 3, generator=seeded(1)), torch.randn(2, 4, 3, generator=seeded(2))
    x[0] *= 10.0  # one row in the tails

    def loss(x: Tensor) -> Tensor:
        objective: Any = registry.find("objective", name)
        return objective(model, x, generator=seeded(), **options)

    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(loss(x), x, create_graph=True)[0]

    for direction in directions:
        up, down = x + 1e-5 * direction, x - 1e-5 * direction
        expected = (loss(up) - loss(down)) / 2e-5
        torch.testing.assert_close((gradient(x) * direction).sum(), expected, rtol=1e-6, atol=1e-7)
        moving = x.clone().requires_grad_()
        slope = torch.autograd.grad(loss(moving), moving, create_graph=True)[0]
        curvature = torch.autograd.grad((slope * direction).sum(), moving)[0]
        torch.testing.assert_close(curvature, (gradient(up) - gradient(down)) / 2e-5, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: objectives.csm(m, x, mix=0.5), "mix: without a noise ladder"),
        (lambda m, x: objectives.csm(m, x, mix=math.nan), 'mix: expected a finite number or "auto", got nan'),
        (lambda m, x: objectives.csm(m, x, mix=cast(Any, [1.0])), 'mix: expected a finite number or "auto", got .1.0'),
        (lambda m, x: objectives.dsm(m, x), "sigma: expected a number"),
        (lambda m, x: objectives.dsm(m, x, sigma=-1.0), "sigma: expected a positive number"),
        (lambda m, x: objectives.ssm(m, x, slices=0), "slices: expected at least 1"),
        (lambda m, x: objectives.ssm(m, x, projections="cube"), "projections: expected"),
        (lambda m, x: objectives.sm(m, x, joint=True), "joint: the joint score needs a normalised head"),
        (lambda m, x: objectives.csm(m, x * math.nan), "x: contains NaN"),
    ],
)
def test_invalid_arguments_are_rejected_by_name(call: object, message: str) -> None:
    model = build(ScoreHead(4, (8,)))
    with pytest.raises(ValueError, match=message):
        call(model, torch.randn(3, 3))
