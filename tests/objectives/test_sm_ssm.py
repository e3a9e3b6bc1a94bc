"""Exact and sliced score matching against each other and against CSM."""

import math

import pytest
import torch

from arcsm import ScoreHead, objectives
from small_objectives import HEADS, build, gradients, seeded

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize("kind", HEADS)
def test_sm_of_the_conditional_scores_is_csm(kind: str) -> None:
    model, x = build(HEADS[kind]()), torch.randn(6, 3)
    csm, sm = objectives.csm(model, x), objectives.sm(model, x, joint=False)
    assert torch.allclose(csm, sm, atol=1e-11)
    for gradient, reference in zip(gradients(csm, model), gradients(sm, model), strict=True):
        assert torch.allclose(gradient, reference, atol=1e-10)


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_sm_ssm_and_csm_agree_for_independent_dimensions(kind: str) -> None:
    model, x = build(HEADS[kind]()), torch.randn(20, 3)
    with torch.no_grad():  # contexts no longer depend on x
        for layer in model.context.layers[:-1]:
            layer.weight.zero_()
    csm = objectives.csm(model, x)
    joint = objectives.sm(model, x, joint=True)
    assert torch.allclose(csm, joint, atol=1e-11)
    for law in ("rademacher", "gaussian", "sphere"):
        rows, generator = x.repeat(20, 1), seeded(1)
        values = torch.stack([objectives.ssm(model, rows, 1, law, generator=generator, joint=True) for _ in range(20)])
        error = values.std() / math.sqrt(len(values))
        assert abs(values.mean() - csm) < 4.5 * error + 1e-12, law


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("law", ["rademacher", "gaussian", "sphere"])
def test_ssm_averages_to_sm(law: str, reduced: bool) -> None:
    model, x, generator = build(ScoreHead(4, (8,))), torch.randn(20, 3), seeded()
    rows = x.repeat(20, 1)
    values = torch.stack([objectives.ssm(model, rows, 2, law, reduced, generator=generator) for _ in range(20)])
    assert abs(values.mean() - objectives.sm(model, x)) < 4.5 * values.std() / math.sqrt(20)
