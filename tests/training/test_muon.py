"""Muon: which weights it learns, its steps, and that a run resumes with its state."""

import copy
from pathlib import Path

import pytest
import torch

from arcsm import (
    MADE,
    AnyOrder,
    AutoregressiveModel,
    CategoricalHead,
    LocatedHead,
    MixedHead,
    NoiseLadder,
    ScoreHead,
    TrainConfig,
    fit,
)
from arcsm.training.optimization import AdamW, Muon, build_optimizer, hidden_matrices, orthogonalised
from small_runs import before_step, correlated_rows, have_same_weights, interrupt, short_config


def wide_density() -> AutoregressiveModel:
    torch.manual_seed(0)
    return AutoregressiveModel(AnyOrder(2, 20, (24, 24), 20), ScoreHead(20, (16, 16)), NoiseLadder(2.0, 0.1, 5))


@pytest.mark.parametrize("shape", [(8, 8), (5, 9), (9, 5), (3, 8, 20)])
def test_singular_values_become_one_and_their_vectors_stay(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    s = torch.logspace(0.0, -2.0, s.shape[-1], dtype=torch.float64).expand_as(s)
    found = orthogonalised(1e3 * u @ (s.unsqueeze(-1) * v))
    inside = u.mT @ found @ v.mT
    assert torch.allclose(inside, torch.diag_embed(inside.diagonal(dim1=-2, dim2=-1)), atol=1e-12)
    assert bool((inside.diagonal(dim1=-2, dim2=-1) - 0.95).abs().max() < 0.3)
    assert torch.allclose(u @ inside @ v, found, atol=1e-12)


def test_zeros_stay_zeros_and_small_numbers_count() -> None:
    assert torch.equal(orthogonalised(torch.zeros(2, 4, 3)), torch.zeros(2, 4, 3))
    torch.manual_seed(0)
    matrix = torch.randn(4, 3)
    assert torch.allclose(orthogonalised(1e-30 * matrix), orthogonalised(matrix), rtol=1e-3, atol=1e-4)


def test_a_graph_with_weights_of_before_a_step_is_refused() -> None:
    weight = torch.nn.Parameter(torch.randn(20, 30))
    optimizer = Muon([{"params": [weight], "matrices": True}], lr=0.1, weight_decay=0.0)
    loss = (weight @ torch.randn(30, 4)).square().sum() * (weight * weight).sum()
    weight.grad = torch.randn(20, 30)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_matrix_without_a_gradient_stays() -> None:
    stack = torch.nn.Parameter(torch.randn(2, 20, 30))
    optimizer = Muon([{"params": [stack], "matrices": True}], lr=0.1, weight_decay=0.0)
    stack.grad = torch.randn(2, 20, 30)
    optimizer.step()
    before = stack.detach().clone()
    stack.grad[1] = 0.0  # as of a column that no row of a batch knows
    optimizer.step()
    assert torch.equal(stack[1], before[1])
    assert not torch.equal(stack[0], before[0])


def test_a_copy_goes_on_as_the_original() -> None:
    weight = torch.nn.Parameter(torch.randn(20, 30))
    optimizer = Muon([{"params": [weight], "matrices": True}], lr=0.1, weight_decay=0.0, momentum=0.5)
    weight.grad = torch.randn(20, 30)
    optimizer.step()
    other = copy.deepcopy(optimizer)
    copied = other.param_groups[0]["params"][0]
    copied.grad = weight.grad.clone()
    optimizer.step()
    other.step()
    assert torch.equal(weight, copied)


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


def test_it_learns_matrices_between_layers_of_units_and_stacks_of_them() -> None:
    context = AnyOrder(18, 20, (24, 24), 20, levels=(0,) * 16 + (40, 40), sinusoids=8, located=True)
    head = MixedHead([LocatedHead(ScoreHead(18, (16, 16))), CategoricalHead(20, 40)], (0,) * 16 + (1, 1))
    model = AutoregressiveModel(context, head, NoiseLadder(2.0, 0.1, 5))
    matrices = {id(weight) for weight in hidden_matrices(model)}
    found = {name for name, weight in model.named_parameters() if id(weight) in matrices}
    network = {f"context.networks.large.{name}weight" for name in ("output_", "first.", "linear.", "layers.0.")}
    assert network <= found
    assert sorted(name.split(".hidden.")[-1] for name in found - network) == ["0.weight", "1.weight"]  # not the logits
    masked = AutoregressiveModel(MADE(2, 20, (24, 24)), ScoreHead(20, (16, 16)), NoiseLadder(2.0, 0.1, 5))
    assert len(hidden_matrices(masked)) == 2  # those of the head


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


def test_a_run_resumes_with_its_averages(tmp_path: Path) -> None:
    config = short_config(steps=12, validate_every=4, checkpoint_seconds=0, optimizer="muon", weight_decay=0.1)
    rows = correlated_rows(), correlated_rows(90, seed=5)
    whole, begun, resumed = wide_density(), wide_density(), wide_density()
    fit(whole, *rows, config)
    with before_step(7, interrupt), pytest.raises(KeyboardInterrupt):
        fit(begun, *rows, config, run=tmp_path / "run")
    fit(resumed, *rows, config, run=tmp_path / "run", resume=True)
    assert have_same_weights(whole, resumed)
