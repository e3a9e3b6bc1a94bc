"""What all objectives have in common: random numbers, conditions, and errors."""

import math

import pytest
import torch

from arcsm import MADE, AutoregressiveModel, GaussianHead, NoiseLadder, ScoreHead, objectives, registry
from small_objectives import build, seeded

pytestmark = pytest.mark.usefixtures("double_precision")


def test_generator_determines_the_loss_and_the_global_one_is_untouched() -> None:
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
        loss = objective(model, x, condition=labels, generator=seeded(0), **options)
        other_loss = objective(model, x, condition=labels.flip(0), generator=seeded(0), **options)
        assert loss != other_loss, name


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
def test_invalid_arguments_are_rejected_by_name(call: object, message: str) -> None:
    model = build(ScoreHead(4, (8,)))
    with pytest.raises(ValueError, match=message):
        call(model, torch.randn(3, 3))
