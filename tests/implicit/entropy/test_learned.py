"""Scores learned online, on samplers whose scores are known."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, GaussianHead, NoiseLadder, ScoreHead
from arcsm.implicit import AutoregressiveScore, DenseTrunk, EncoderUnits, EntropyGradient, JointScore, ScoreNetwork
from small_vaes import FLOAT64, normal


class GaussianSampler:
    """An autoregressive Gaussian that depends on its input: z_1 = x + w_1 e_1, z_2 = a (z_1 - x) + w_2 e_2."""

    def __init__(self) -> None:
        self.log_widths = torch.tensor([0.5, 2.0], dtype=FLOAT64).log().requires_grad_()
        self.coupling = torch.ones((), dtype=FLOAT64, requires_grad=True)

    def __call__(self, x: Tensor, e: Tensor) -> Tensor:
        widths = self.log_widths.exp()
        first = x + widths[0] * e[..., 0]
        return torch.stack([first, self.coupling * (first - x) + widths[1] * e[..., 1]], -1)

    def conditional_scores(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.stack([-4.0 * (z[..., 0] - x), -0.25 * (z[..., 1] - z[..., 0] + x)], -1)


def learn(estimator: EntropyGradient, sampler: GaussianSampler, steps: int) -> list[float]:
    """Return the losses of updates; the last quarter has a tenth of the learning rate."""
    losses = []
    for step in range(steps):
        if step == 3 * steps // 4:
            for group in estimator.optimizer.param_groups:  # type: ignore[attr-defined]
                group["lr"] *= 0.1
        x = normal(64, 1, seed=2 * step + 1)
        generator = torch.Generator().manual_seed(step)
        loss = estimator.update(sampler(x, normal(64, 4, 2, seed=2 * step)), x, generator)
        assert loss is not None
        losses.append(loss)
    return losses


def check_entropy_gradient(estimator: EntropyGradient, sampler: GaussianSampler) -> None:
    """Check that the derivative is one by each log width and zero by the coupling."""
    x = normal(4000, 1, seed=-1)
    estimator.surrogate(sampler(x, normal(4000, 5, 2, seed=-2)), x).backward()
    assert sampler.log_widths.grad is not None
    torch.testing.assert_close(sampler.log_widths.grad, torch.ones(2, dtype=FLOAT64), rtol=0.0, atol=0.08)
    assert abs(float(sampler.coupling.grad)) < 0.05  # type: ignore[arg-type]


def learned_scores(condition_features: int = 0) -> list[EntropyGradient]:
    made = MADE(2, 4, (8,), condition_features=condition_features)
    return [
        AutoregressiveScore(AutoregressiveModel(made, GaussianHead(4)).double()),
        JointScore(ScoreNetwork(2, condition_features, (8,)).double()),
    ]


@pytest.mark.parametrize("objective", ["csm", "ssm"])
def test_conditional_scores_are_learned_online(objective: str) -> None:
    torch.manual_seed(0)
    sampler = GaussianSampler()
    model = AutoregressiveModel(MADE(2, 8, (), condition_features=1), GaussianHead(8)).double()
    estimator = AutoregressiveScore(model, objective, learning_rate=0.02)  # type: ignore[arg-type]
    losses = learn(estimator, sampler, 600)
    assert sum(losses[-20:]) < sum(losses[:20])
    x = normal(500, 1, seed=-1)
    z = sampler(x, normal(500, 2, 2, seed=-2)).detach()
    score, expected = estimator.score(z, x), sampler.conditional_scores(x, z)
    assert float((score - expected).square().sum() / expected.square().sum()) < 0.01
    check_entropy_gradient(estimator, sampler)


def test_joint_score_is_learned_online() -> None:
    torch.manual_seed(0)
    sampler = GaussianSampler()
    estimator = JointScore(ScoreNetwork(2, 1, (32, 32)).double(), learning_rate=3e-3)
    learn(estimator, sampler, 500)
    x = normal(500, 1, seed=-1)
    z = sampler(x, normal(500, 2, 2, seed=-2)).detach()
    joint = sampler.conditional_scores(x, z)
    joint[..., 0] += 0.25 * (z[..., 1] - z[..., 0] + x)
    score = estimator.score(z, x).detach()
    assert float((score - joint).square().sum() / joint.square().sum()) < 0.05
    check_entropy_gradient(estimator, sampler)


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


def test_ladder_gives_entropy_gradient_of_noisy_latent() -> None:
    """The entropy of N(0, w^2) with noise s has the derivative w^2 / (w^2 + s^2) by log w."""
    torch.manual_seed(0)
    model = AutoregressiveModel(MADE(1, 4, ()), GaussianHead(4), NoiseLadder(0.5, 0.5, levels=1)).double()
    estimator = AutoregressiveScore(model, learning_rate=0.02, mix=0.3)
    for step in range(400):
        if step == 300:
            estimator.optimizer.param_groups[0]["lr"] = 1e-3
        estimator.update(normal(1, 256, 1, seed=step))
    log_width = torch.zeros((), dtype=FLOAT64, requires_grad=True)
    estimator.surrogate(log_width.exp() * normal(1, 100_000, 1, seed=-1)).backward()
    assert float(log_width.grad) == pytest.approx(0.8, abs=0.04)  # type: ignore[arg-type]


def test_no_gradient_flows_to_samples_or_conditions() -> None:
    for estimator in learned_scores(condition_features=3):
        z, condition = normal(3, 2, 2).requires_grad_(), normal(3, 3).requires_grad_()
        shared = condition * 2.0
        estimator.update(z, shared)
        assert z.grad is None
        assert condition.grad is None
        (estimator.surrogate(z, shared) + shared.sum()).backward()  # the graph of the condition was kept
        assert torch.equal(condition.grad, torch.full_like(condition, 2.0))  # type: ignore[arg-type]


def test_update_works_under_no_grad() -> None:
    for estimator in learned_scores():
        with torch.no_grad():
            assert estimator.update(normal(3, 2, 2)) is not None


def test_dropout_is_active_in_update_only() -> None:
    torch.manual_seed(0)
    dropout = torch.nn.Dropout(0.5)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.dropout = torch.nn.Linear(2, 2, dtype=FLOAT64), dropout

        def forward(self, z: Tensor, condition: Tensor | None) -> Tensor:
            return self.dropout(self.linear(z))  # type: ignore[no-any-return]

    estimator = JointScore(Network())
    z = normal(1, 50, 2)
    assert torch.equal(estimator.score(z), estimator.score(z))
    estimator.update(z)
    assert dropout.training
    assert torch.equal(estimator.score(z), estimator.score(z))


def test_learning_resumes_from_state() -> None:
    for first, second in zip(learned_scores(), learned_scores(), strict=True):
        assert isinstance(first, AutoregressiveScore | JointScore)
        assert isinstance(second, AutoregressiveScore | JointScore)
        first.update(normal(3, 2, 2))
        second.load_state_dict(first.state_dict())
        for scores in (first, second):
            scores.update(normal(3, 2, 2, seed=1), generator=torch.Generator().manual_seed(2))
        pairs = zip(first.network.state_dict().values(), second.network.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_score_restores_training_mode() -> None:
    network = ScoreNetwork(2)
    joint = JointScore(network)
    for mode in (True, False):
        joint.trained.train(mode)
        joint.score(torch.zeros(1, 3, 2))
        assert network.training is mode


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


def test_rescaled_estimator_resumes_from_state() -> None:
    def rescaled() -> EncoderUnits:
        torch.manual_seed(3)
        return EncoderUnits(JointScore(ScoreNetwork(2)), lambda condition: (torch.zeros(1, 2), torch.zeros(1, 2)))

    z = torch.randn(1, 50, 2)
    first, second = rescaled(), rescaled()
    first.update(z, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(first.score(z), second.score(z))
    second.load_state_dict(first.state_dict())
    for estimator in (first, second):
        estimator.update(z, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first.score(z), second.score(z))


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
    with pytest.raises(ValueError, match="learning_rate"):
        JointScore(ScoreNetwork(2), learning_rate=0.0)
    with pytest.raises(ValueError, match="mix: expected 1"):
        AutoregressiveScore(model, mix=0.5)
    with pytest.raises(ValueError, match="slices: expected at least 1"):
        JointScore(ScoreNetwork(2), slices=0)
    with pytest.raises(ValueError, match="one for each of the 3 inputs"):
        AutoregressiveScore(model).update(torch.zeros(3, 2, 2), torch.zeros(2, 1))
    noisy = AutoregressiveModel(MADE(2, 4, (8,)), ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 3))
    for invalid in (model, noisy):
        with pytest.raises(ValueError, match=r"expected shape \(\*, 2\)"):
            AutoregressiveScore(invalid).surrogate(torch.zeros(3, 2, 5, requires_grad=True))


def test_invalid_conditions_and_dtypes_are_rejected() -> None:
    joint = JointScore(ScoreNetwork(2, condition_features=3))
    z = torch.randn(4, 5, 2)
    for condition, message in (
        (torch.zeros(4, 2), r"condition: expected \(B, 3\), got \(20, 2\)"),
        (None, r"condition: expected \(B, 3\), got None"),
        (torch.zeros(4, 5, 3), r"condition: expected \(B, F\), got \(4, 5, 3\)"),
        (torch.full((4, 3), math.nan), "condition: holds NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            joint.update(z, condition)
    with pytest.raises(ValueError, match=r"z: expected torch\.float32, the network's dtype, got torch\.float64"):
        joint.update(z.double(), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="z: expected floating point numbers"):
        joint.update(torch.zeros(4, 5, 2, dtype=torch.long), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="trunk: expected 3 extra features, got 2"):
        ScoreNetwork(3, trunk=DenseTrunk(3, (4,), 2))
