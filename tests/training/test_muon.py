"""Muon: its steps, and the rates of its groups."""

import pytest
import torch

from arcsm import AnyOrder, AutoregressiveModel, NoiseLadder, ScoreHead, TrainConfig
from arcsm.training.optimization import AdamW, Muon, build_optimizer, orthogonalised


def wide_density() -> AutoregressiveModel:
    torch.manual_seed(0)
    return AutoregressiveModel(AnyOrder(2, 20, (24, 24), 20), ScoreHead(20, (16, 16)), NoiseLadder(2.0, 0.1, 5))


@pytest.mark.parametrize("shape", [(9, 5), (3, 8, 20)])
def test_singular_values_become_one_and_their_vectors_stay(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    s = torch.logspace(0.0, -2.0, s.shape[-1], dtype=torch.float64).expand_as(s)
    found = orthogonalised(1e3 * u @ (s.unsqueeze(-1) * v))
    inside = u.mT @ found @ v.mT
    assert torch.allclose(inside, torch.diag_embed(inside.diagonal(dim1=-2, dim2=-1)), atol=1e-12)
    assert bool((inside.diagonal(dim1=-2, dim2=-1) - 0.95).abs().max() < 0.3)
    assert torch.allclose(u @ inside @ v, found, atol=1e-12)


def test_a_step_with_infinite_gradients_is_left_out() -> None:
    matrix, bias = torch.nn.Parameter(torch.ones(20, 30)), torch.nn.Parameter(torch.ones(20))
    optimizer = Muon([{"params": [bias]}, {"params": [matrix], "matrices": True}], lr=0.1, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu")
    for factor, steps in ((1e38, 0), (1.0, 1)):  # the first overflows once the loss is scaled
        optimizer.zero_grad()
        scaler.scale(factor * (matrix.sum() + bias.sum())).backward()
        scaler.step(optimizer)
        scaler.update()
        assert bool(torch.isfinite(matrix).all())
        assert [bool((weight == 1.0).all()) for weight in (matrix, bias)] == [steps == 0] * 2


def test_a_step_is_that_of_its_equation_and_other_weights_have_that_of_adamw() -> None:
    torch.manual_seed(0)
    start, biases = torch.randn(20, 30, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    matrix, bias, other = (torch.nn.Parameter(x.clone()) for x in (start, biases, biases))
    groups = [{"params": [bias]}, {"params": [matrix], "matrices": True, "lr": 0.3}]
    both = Muon(groups, lr=0.1, weight_decay=0.5), AdamW([other], lr=0.1, weight_decay=0.5, fused=True)
    average, expected = torch.zeros_like(start), start
    for step in range(3):
        gradient = torch.randn(20, 30, dtype=torch.float64)
        matrix.grad, bias.grad, other.grad = gradient, biases * (step + 1), biases * (step + 1)
        for optimizer in both:
            optimizer.step()
        average = 0.95 * average + 0.05 * gradient
        ahead = orthogonalised(0.05 * gradient + 0.95 * average)
        expected = (1.0 - 0.3 * 0.5) * expected - 0.2 * 30**0.5 * 0.3 * ahead
        assert torch.allclose(matrix, expected, rtol=1e-12)
        assert torch.equal(bias, other)


def test_their_groups_have_the_rates_of_their_parts() -> None:
    model = wide_density()
    config = TrainConfig(optimizer="muon", learning_rate=1e-3, score_rate_factor=4.0)
    found = build_optimizer(model, config)
    assert isinstance(found, Muon)
    rates = {id(w): (group["matrices"], group["lr"]) for group in found.param_groups for w in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    seen = set()
    for name, weight in model.named_parameters():
        of_head, is_matrix = name.startswith("head."), weight.ndim > 1 and min(weight.shape[-2:]) >= 16
        assert rates[id(weight)] == (is_matrix, pytest.approx(4e-3 if of_head else 1e-3)), name
        seen.add((of_head, is_matrix))
    assert len(seen) == 4
