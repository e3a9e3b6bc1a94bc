"""Scores learned online, on samplers whose scores are known."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, GaussianHead, NoiseLadder, ScoreHead
from arcsm.implicit import AutoregressiveScore, EncoderUnits, EntropyGradient, JointScore, ScoreNetwork
from small_vaes import FLOAT64, normal


class GaussianSampler:
    """An autoregressive Gaussian that depends on its input: z_1 = x + e_1 / 2, z_2 = z_1 - x + 2 e_2."""

    def __call__(self, x: Tensor, e: Tensor) -> Tensor:
        first = x + 0.5 * e[..., 0]
        return torch.stack([first, first - x + 2.0 * e[..., 1]], -1)

    def conditional_scores(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.stack([-4.0 * (z[..., 0] - x), -0.25 * (z[..., 1] - z[..., 0] + x)], -1)


def learn(estimator: AutoregressiveScore, sampler: GaussianSampler, steps: int) -> list[float]:
    """Return the losses of updates; the last quarter has a tenth of the learning rate."""
    losses = []
    for step in range(steps):
        if step == 3 * steps // 4:
            estimator.optimizer.param_groups[0]["lr"] *= 0.1
        x = normal(64, 1, seed=2 * step + 1)
        generator = torch.Generator().manual_seed(step)
        loss = estimator.update(sampler(x, normal(64, 4, 2, seed=2 * step)), x, generator)
        assert loss is not None
        losses.append(loss)
    return losses


def learned_scores() -> list[EntropyGradient]:
    unit = torch.zeros(3, 2, dtype=FLOAT64)
    return [
        AutoregressiveScore(AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4)).double()),
        EncoderUnits(JointScore(ScoreNetwork(2, 0, (8,)).double()), lambda condition: (unit, unit)),
    ]


def test_conditional_scores_are_learned_online() -> None:
    sampler = GaussianSampler()
    model = AutoregressiveModel(MADE(2, 8, (), condition_features=1), GaussianHead(8)).double()
    estimator = AutoregressiveScore(model, learning_rate=0.02)
    losses = learn(estimator, sampler, 600)
    assert sum(losses[-20:]) < sum(losses[:20])
    x = normal(500, 1, seed=-1)
    z = sampler(x, normal(500, 2, 2, seed=-2)).detach()
    score, expected = estimator.score(z, x), sampler.conditional_scores(x, z)
    assert float((score - expected).square().sum() / expected.square().sum()) < 0.01


def test_conditional_scores_are_those_of_the_model() -> None:
    torch.manual_seed(0)
    ladder = NoiseLadder(2.0, 0.1, levels=3)
    for head, noise in ((GaussianHead(4), None), (ScoreHead(4, (8,)), None), (ScoreHead(4, (8,)), ladder)):
        model = AutoregressiveModel(MADE(3, 4, (8,), condition_features=2), head, noise).double()
        model.set_standardisation(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 3.0, 1.0]))
        z, x = normal(5, 4, 3), normal(5, 2, seed=1)
        torch.manual_seed(1)
        score = AutoregressiveScore(model).score(z, x)
        torch.manual_seed(1)
        noisy = z if noise is None else z + 0.1 * model.scale * torch.randn(20, 3, dtype=FLOAT64).view(5, 4, 3)
        torch.testing.assert_close(score, model.score(noisy, condition=x.unsqueeze(1))[0].detach())


def test_learning_resumes_from_state() -> None:
    for first, second in zip(learned_scores(), learned_scores(), strict=True):
        first.update(normal(3, 2, 2))
        second.load_state_dict(first.state_dict())
        for scores in (first, second):
            scores.update(normal(3, 2, 2, seed=1), generator=torch.Generator().manual_seed(2))
        z = normal(3, 2, 2, seed=2)
        assert torch.equal(first.score(z), second.score(z))


def test_samples_far_from_initial_width_raise_a_warning() -> None:
    z = torch.randn(1, 100, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50.0])
    model = AutoregressiveModel(MADE(2, 4, (8,)), ScoreHead(4))
    with pytest.warns(UserWarning, match=r"samples of dimension 1 are \d+ times as wide as the initial score expects"):
        AutoregressiveScore(model).update(z)
    with pytest.warns(UserWarning, match="dimension 1"):
        JointScore(ScoreNetwork(2)).update(z)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.set_standardisation(torch.zeros(2), torch.tensor([1.0, 50.0]))
        AutoregressiveScore(model).update(z)
        unit = (torch.zeros(1, 2), torch.tensor([[0.0, math.log(50.0)]]))
        EncoderUnits(JointScore(ScoreNetwork(2)), lambda condition: unit).update(z)


def test_non_finite_loss_takes_no_step() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4)).double()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="AutoregressiveScore: loss"):
        AutoregressiveScore(model).update(torch.full((2, 2, 2), 1e200, dtype=FLOAT64))
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_invalid_arguments_are_rejected() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4))
    with pytest.raises(ValueError, match='objective: expected "csm" or "ssm"'):
        AutoregressiveScore(model, "mle")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mix: expected 1"):
        AutoregressiveScore(model, mix=0.5)
    with pytest.raises(ValueError, match="one for each of the 3 inputs"):
        AutoregressiveScore(model).update(torch.zeros(3, 2, 2), torch.zeros(2, 1))


def test_invalid_conditions_and_dtypes_are_rejected() -> None:
    joint = JointScore(ScoreNetwork(2, condition_features=3))
    z = torch.randn(4, 5, 2)
    for condition, message in (
        (torch.zeros(4, 2), r"condition: expected \(B, 3\), got \(20, 2\)"),
        (torch.full((4, 3), math.nan), "condition: holds NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            joint.update(z, condition)
    with pytest.raises(ValueError, match=r"z: expected torch\.float32, the network's dtype, got torch\.float64"):
        joint.update(z.double(), torch.zeros(4, 3))
