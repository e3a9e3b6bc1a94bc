"""Losses of levels in C against torch, with gradients."""

import pytest
import torch
from torch import Tensor

from arcsm import CategoricalHead
from arcsm._native import LevelWeights, level_losses
from arcsm.objectives import levels
from arcsm.objectives.levels import LevelHeads

COUNTS = (1, 2, 8, 33, 300)


def make_heads(smoothed: bool, ordered: bool = False) -> list[CategoricalHead]:
    torch.manual_seed(0)
    heads = [CategoricalHead(5, count, ordered) for count in COUNTS]
    with torch.no_grad():
        for head in heads:
            head.logits.weight.mul_(20.0)
            head.logits.bias.normal_()
            if smoothed:
                head.smooth(0.8, 0.05, torch.rand(head.levels) + 0.1)
    return heads


def make_terms(rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    number = torch.randint(len(COUNTS), (rows,))
    x = (torch.rand(rows) * torch.tensor(COUNTS)[number]).floor()
    weight = torch.rand(rows) * (torch.rand(rows) < 0.8)
    return number, torch.randn(rows, 5), x, weight


def loss_and_gradients(heads: list[CategoricalHead], rows: int) -> tuple[Tensor, list[Tensor]]:
    number, context, x, weight = make_terms(rows)
    context.requires_grad_()
    loss = LevelHeads(heads, number).negative_log_prob(context, x, weight)
    parameters = [p for head in heads for p in head.parameters()]
    return loss.detach(), list(torch.autograd.grad(2.0 * loss, [context, *parameters], materialize_grads=True))


@pytest.mark.parametrize("rows", [1, 131])
@pytest.mark.parametrize(("smoothed", "ordered"), [(False, False), (True, False), (True, True)])
def test_losses_and_gradients_are_those_of_torch(
    rows: int, smoothed: bool, ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = make_heads(smoothed, ordered)
    ours, gradients = loss_and_gradients(heads, rows)
    monkeypatch.setattr(levels, "available", lambda: False)
    expected, others = loss_and_gradients(heads, rows)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5 * float(other.abs().max() + 1.0))


def test_a_level_that_does_not_exist_has_an_infinite_loss() -> None:
    heads = make_heads(smoothed=False)
    number, context, x, weight = make_terms(20)
    weight = torch.ones_like(weight)
    for wrong in (-1.0, 0.5, 1e9, torch.nan):
        x[3] = wrong
        assert LevelHeads(heads, number).negative_log_prob(context, x, weight) == torch.inf


def test_shapes_that_do_not_match_are_errors() -> None:
    weights = [LevelWeights(1.0, 0.0, torch.zeros(3, 2), torch.zeros(3), torch.ones(3) / 3.0)]
    context, x, weight, number = torch.zeros(4, 2), torch.zeros(4), torch.ones(4), torch.zeros(4, dtype=torch.int64)
    assert level_losses(weights, number, context, x, weight)[0] > 0.0
    with pytest.raises(ValueError, match="level_losses: shapes do not match"):
        level_losses(weights, number + 1, context, x, weight)
    with pytest.raises(ValueError, match="level_losses: shapes do not match"):
        level_losses(weights, number, torch.zeros(4, 3), x, weight)
    with pytest.raises(TypeError, match="float32"):
        level_losses(weights, number, context.double(), x, weight)
