"""Entropy gradients against closed forms: kernels by their definitions, learned scores on known distributions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, GaussianHead
from arcsm.implicit import (
    AutoregressiveScore,
    EntropyGradient,
    GaussianEntropy,
    JointScore,
    ScoreNetwork,
    Spectral,
    Stein,
)

FLOAT64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=FLOAT64)


class Known(EntropyGradient):
    """A score that is given."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.function(z)


def kernel(a: Tensor, b: Tensor, width: float) -> Tensor:
    return torch.exp(-0.5 * (a[:, None] - b[None, :]).square().sum(-1) / width**2)


def median_distance(z: Tensor) -> float:
    return float(torch.pdist(z).median())


# Kernels ------------------------------------------------------------------------------------------------------------


def test_stein_is_its_definition() -> None:
    z = normal(2, 9, 3)
    found = Stein(eta=0.01).score(z)
    for row, score in zip(z, found, strict=True):
        width = median_distance(row)
        places = row.clone().requires_grad_()
        slopes = torch.stack(
            [torch.autograd.grad(kernel(row[i : i + 1], places, width).sum(), places)[0].sum(0) for i in range(9)]
        )
        matrix = kernel(row, row, width) + 0.01 * torch.eye(9, dtype=FLOAT64)
        torch.testing.assert_close(score, -torch.linalg.inv(matrix) @ slopes)


@pytest.mark.parametrize("share", [0.8, 0.99])
def test_spectral_is_its_definition(share: float) -> None:
    z = normal(1, 12, 2, seed=1)[0]
    width, m = median_distance(z), len(z)
    values, vectors = torch.linalg.eigh(kernel(z, z, width))
    values, vectors = values.flip(0), vectors.flip(1)
    enough = int((values.cumsum(0) / values.sum() < share).sum()) + 1

    def eigenfunction(j: int, at: Tensor) -> Tensor:
        return math.sqrt(m) / values[j] * kernel(at, z, width) @ vectors[:, j]

    expected = torch.zeros_like(z)
    for j in range(enough):
        at = z.clone().requires_grad_()
        beta = -torch.autograd.grad(eigenfunction(j, at).sum(), at)[0].mean(0)
        expected += eigenfunction(j, z)[:, None] * beta
    torch.testing.assert_close(Spectral(share).score(z[None])[0], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("estimator", [Stein(eta=1.0), Spectral()])  # at eta = 1e-3 Stein's is noisy at single points
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_kernels_find_the_score_of_a_gaussian_at_any_scale(estimator: EntropyGradient, scale: float) -> None:
    e = normal(1, 200, 2)
    found = estimator.score(scale * (3.0 + e)) * scale
    assert float(torch.cosine_similarity(found.flatten(), -e.flatten(), 0)) > 0.93
    torch.testing.assert_close(found, estimator.score(e), rtol=1e-6, atol=1e-6)


# The surrogate ------------------------------------------------------------------------------------------------------


def test_the_gradient_of_the_surrogate_is_that_of_the_entropy() -> None:
    log_std = torch.tensor([0.3, -1.0, 0.0], dtype=FLOAT64, requires_grad=True)
    z = log_std.exp() * normal(4, 50_000, 3)
    Known(lambda z: -z * torch.exp(-2.0 * log_std)).surrogate(z).backward()
    assert log_std.grad is not None
    torch.testing.assert_close(log_std.grad, torch.ones(3, dtype=FLOAT64), rtol=0.0, atol=0.02)


def test_no_gradient_flows_into_the_score() -> None:
    weight = torch.ones((), dtype=FLOAT64, requires_grad=True)
    z = normal(1, 5, 2).requires_grad_()
    Known(lambda z: weight * z).surrogate(z).backward()
    assert weight.grad is None
    assert z.grad is not None


def test_conditional_scores_are_enough_for_autoregressive_samplers_alone() -> None:
    """z_2 = a z_1 + e_2 has an entropy that a does not change; z_1 = e_1 + b e_2, z_2 = e_2 one that b does not."""
    e = normal(1, 400_000, 2)
    a = torch.tensor(0.7, dtype=FLOAT64, requires_grad=True)
    z = torch.stack([e[..., 0], a * e[..., 0] + e[..., 1]], -1)
    Known(lambda z: torch.stack([-z[..., 0], -(z[..., 1] - 0.7 * z[..., 0])], -1)).surrogate(z).backward()
    assert abs(float(a.grad)) < 0.01  # type: ignore[arg-type]

    b = torch.tensor(0.7, dtype=FLOAT64, requires_grad=True)
    z = torch.stack([e[..., 0] + b * e[..., 1], e[..., 1]], -1)
    variance = 1.0 + 0.7**2
    first = lambda z: -z[..., 0] / variance  # noqa: E731
    second = lambda z: -(z[..., 1] - 0.7 / variance * z[..., 0]) * variance  # noqa: E731
    Known(lambda z: torch.stack([first(z), second(z)], -1)).surrogate(z).backward()
    assert float(b.grad) == pytest.approx(0.7 / variance, abs=0.01)  # type: ignore[arg-type]  # a bias, as documented
    b.grad = None
    joint = lambda z: torch.stack([-(z[..., 0] - 0.7 * z[..., 1]), 0.7 * z[..., 0] - variance * z[..., 1]], -1)  # noqa: E731
    z = torch.stack([e[..., 0] + b * e[..., 1], e[..., 1]], -1)
    Known(joint).surrogate(z).backward()
    assert abs(float(b.grad)) < 0.01  # type: ignore[arg-type]


def test_an_explicit_gaussian_has_its_entropy_in_nats() -> None:
    log_std = normal(4, 3)
    gaussian = GaussianEntropy(lambda condition: (torch.zeros(4, 3, dtype=FLOAT64), log_std))
    expected = torch.distributions.Normal(torch.zeros(4, 3, dtype=FLOAT64), log_std.exp()).entropy().sum(1).mean()
    torch.testing.assert_close(gaussian.surrogate(normal(4, 2, 3)), expected)
    z = normal(4, 2, 3).requires_grad_()
    log_prob = torch.distributions.Normal(0.0, log_std.exp()[:, None]).log_prob(z).sum()
    torch.testing.assert_close(gaussian.score(z.detach()), torch.autograd.grad(log_prob, z)[0])


# Learned scores -----------------------------------------------------------------------------------------------------


def sampler(x: Tensor, e: Tensor) -> Tensor:
    """An autoregressive Gaussian that depends on its input: z_1 = x + e_1 / 2, z_2 = z_1 - x + 2 e_2."""
    first = x + 0.5 * e[..., 0]
    return torch.stack([first, first - x + 2.0 * e[..., 1]], -1)


def conditional_scores(x: Tensor, z: Tensor) -> Tensor:
    return torch.stack([-4.0 * (z[..., 0] - x), -0.25 * (z[..., 1] - z[..., 0] + x)], -1)


@pytest.mark.parametrize("objective", ["csm", "ssm"])
def test_conditional_scores_are_learned_from_samples_as_they_come(objective: str) -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(MADE(2, 8, (), condition_features=1), GaussianHead(8)).double()
    estimator = AutoregressiveScore(model, objective, learning_rate=0.02)  # type: ignore[arg-type]
    losses = []
    for step in range(800):
        if step == 600:
            for group in estimator.optimiser.param_groups:
                group["lr"] = 1e-3
        x = normal(64, 1, seed=2 * step + 1)
        losses.append(estimator.update(sampler(x, normal(64, 4, 2, seed=2 * step)), x))
    assert sum(losses[-20:]) < sum(losses[:20])
    x = normal(500, 1, seed=-1)
    z = sampler(x, normal(500, 2, 2, seed=-2))
    found, truth = estimator.score(z, x).detach(), conditional_scores(x, z)
    assert float((found - truth).square().sum() / truth.square().sum()) < 0.01


def test_a_joint_score_is_learned_from_samples_as_they_come() -> None:
    torch.manual_seed(0)
    estimator = JointScore(ScoreNetwork(2, 1, (32, 32)).double(), learning_rate=3e-3)
    for step in range(600):
        if step == 400:
            for group in estimator.optimiser.param_groups:
                group["lr"] = 3e-4
        x = normal(64, 1, seed=2 * step + 1)
        estimator.update(sampler(x, normal(64, 4, 2, seed=2 * step)), x)
    x = normal(500, 1, seed=-1)
    z = sampler(x, normal(500, 2, 2, seed=-2))
    joint = conditional_scores(x, z)
    joint[..., 0] += 0.25 * (z[..., 1] - z[..., 0] + x)
    found = estimator.score(z, x).detach()
    assert float((found - joint).square().sum() / joint.square().sum()) < 0.05


def test_updates_leave_the_sampler_alone() -> None:
    z = normal(3, 2, 2).requires_grad_()
    AutoregressiveScore(AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4)).double()).update(z)
    assert z.grad is None


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(3, 2), r"z: expected samples \(B, K, D\) with K at least 2, got \(3, 2\)"),
        (torch.zeros(3, 1, 2), "K at least 2"),
        (torch.full((1, 3, 2), math.nan), "z: holds NaN or infinity"),
        (torch.zeros(1, 5, 2), "the sampler has collapsed"),
    ],
)
def test_bad_samples_are_named(z: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stein().surrogate(z)


def test_wrong_arguments_are_named() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4))
    with pytest.raises(ValueError, match='objective: expected "csm" or "ssm"'):
        AutoregressiveScore(model, "mle")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="learning_rate"):
        JointScore(ScoreNetwork(2), learning_rate=0.0)
    with pytest.raises(ValueError, match="eta"):
        Stein(0.0)
    with pytest.raises(ValueError, match="share"):
        Spectral(1.5)
    with pytest.raises(ValueError, match="one for each of the 3 inputs"):
        AutoregressiveScore(model).update(torch.zeros(3, 2, 2), torch.zeros(2, 1))


def test_a_loss_that_is_not_finite_makes_no_step() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4)).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="not finite"):
        AutoregressiveScore(model).update(torch.full((2, 2, 2), 1e200, dtype=FLOAT64))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
