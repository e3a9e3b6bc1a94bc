"""Entropy gradients against closed forms: kernels by their definitions, learned scores on known distributions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, GaussianHead, NoiseLadder, ScoreHead
from arcsm.experiments import entropy
from arcsm.implicit import (
    AutoregressiveScore,
    EncoderUnits,
    EntropyGradient,
    GaussianEntropy,
    JointScore,
    NonFiniteError,
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


@pytest.mark.parametrize("dtype", [torch.float32, FLOAT64])
@pytest.mark.parametrize("estimator", [Stein(), Spectral()])
@pytest.mark.parametrize("bend", [0.0, 0.8])
def test_kernels_give_the_entropy_gradient(dtype: torch.dtype, estimator: EntropyGradient, bend: float) -> None:
    """z = 5 + w (e + b tanh 3e), far from zero, two humps for b > 0: H = log w + E log(1 + 3 b sech^2 3e) + const."""
    log_width = torch.tensor(-3.0, dtype=dtype, requires_grad=True)
    b = torch.tensor(bend, dtype=dtype, requires_grad=True)
    e = normal(60, 100, 1).to(dtype)
    estimator.surrogate(5.0 + log_width.exp() * (e + b * torch.tanh(3.0 * e))).backward()
    steep = 3.0 / torch.cosh(3.0 * e.double()).square()
    assert float(log_width.grad) == pytest.approx(1.0, abs=0.1)  # type: ignore[arg-type]
    assert float(b.grad) == pytest.approx(float((steep / (1.0 + bend * steep)).mean()), rel=0.3)  # type: ignore[arg-type]


# Learned scores -----------------------------------------------------------------------------------------------------


class Sampler:
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


def learn(estimator: EntropyGradient, sampler: Sampler, steps: int) -> list[float]:
    """Losses of so many updates, the last quarter with a tenth of the learning rate."""
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


def check_entropy_gradient(estimator: EntropyGradient, sampler: Sampler) -> None:
    """That of the widths is one each; the coupling does not change the entropy."""
    x = normal(4000, 1, seed=-1)
    estimator.surrogate(sampler(x, normal(4000, 5, 2, seed=-2)), x).backward()
    assert sampler.log_widths.grad is not None
    torch.testing.assert_close(sampler.log_widths.grad, torch.ones(2, dtype=FLOAT64), rtol=0.0, atol=0.08)
    assert abs(float(sampler.coupling.grad)) < 0.05  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", ["csm", "ssm"])
def test_conditional_scores_are_learned_from_samples_as_they_come(objective: str) -> None:
    torch.manual_seed(0)
    sampler = Sampler()
    model = AutoregressiveModel(MADE(2, 8, (), condition_features=1), GaussianHead(8)).double()
    estimator = AutoregressiveScore(model, objective, learning_rate=0.02)  # type: ignore[arg-type]
    losses = learn(estimator, sampler, 800)
    assert sum(losses[-20:]) < sum(losses[:20])
    x = normal(500, 1, seed=-1)
    z = sampler(x, normal(500, 2, 2, seed=-2)).detach()
    found, truth = estimator.score(z, x), sampler.conditional_scores(x, z)
    assert float((found - truth).square().sum() / truth.square().sum()) < 0.01
    check_entropy_gradient(estimator, sampler)


def test_a_joint_score_is_learned_from_samples_as_they_come() -> None:
    torch.manual_seed(0)
    sampler = Sampler()
    estimator = JointScore(ScoreNetwork(2, 1, (32, 32)).double(), learning_rate=3e-3)
    learn(estimator, sampler, 600)
    x = normal(500, 1, seed=-1)
    z = sampler(x, normal(500, 2, 2, seed=-2)).detach()
    joint = sampler.conditional_scores(x, z)
    joint[..., 0] += 0.25 * (z[..., 1] - z[..., 0] + x)
    found = estimator.score(z, x).detach()
    assert float((found - joint).square().sum() / joint.square().sum()) < 0.05
    check_entropy_gradient(estimator, sampler)


def test_scores_of_conditionals_are_those_of_the_model_in_its_units() -> None:
    torch.manual_seed(0)
    ladder = NoiseLadder(2.0, 0.1, levels=3)
    for head, noise in ((GaussianHead(4), None), (ScoreHead(4, (8,)), None), (ScoreHead(4, (8,)), ladder)):
        model = AutoregressiveModel(MADE(3, 4, (8,), condition_features=2), head, noise).double()
        model.set_standardisation(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 3.0, 1.0]))
        z, x = normal(5, 4, 3), normal(5, 2, seed=1)
        torch.manual_seed(1)
        found = AutoregressiveScore(model).score(z, x)
        torch.manual_seed(1)
        blurred = z if noise is None else z + 0.1 * model.scale * torch.randn(20, 3, dtype=FLOAT64).view(5, 4, 3)
        torch.testing.assert_close(found, model.score(blurred, condition=x.unsqueeze(1))[0].detach())


def test_a_ladder_gives_the_entropy_of_the_noisy_latents() -> None:
    """N(0, w^2) with noise s on it: the slope by log w is w^2 / (w^2 + s^2)."""
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


def test_a_ladder_is_biased_by_the_square_of_its_noise_for_several_latents() -> None:
    """z_1 = w e_1, z_2 = z_1 + e_2, with noise of 0.5 on both: with exact conditional scores of the noisy latents the
    surrogate gives 0.938 by w, where the entropy of the noisy latents has 0.828 and that of the latents 1."""
    noise, e, n = 0.5, normal(1, 400_000, 2), normal(1, 400_000, 2, seed=1)
    first, both = 1.0 + noise**2, 2.0 + noise**2  # variances of the noisy latents, their covariance is 1
    coefficient, rest = 1.0 / first, both - 1.0 / first

    def scores(z: Tensor) -> Tensor:
        noisy = z + noise * n
        return torch.stack([-noisy[..., 0] / first, -(noisy[..., 1] - coefficient * noisy[..., 0]) / rest], -1)

    w = torch.ones((), dtype=FLOAT64, requires_grad=True)
    z = torch.stack([w * e[..., 0], w * e[..., 0] + e[..., 1]], -1)
    Known(scores).surrogate(z).backward()
    assert float(w.grad) == pytest.approx(0.938, abs=0.01)  # type: ignore[arg-type]


def learned(condition_features: int = 0) -> list[EntropyGradient]:
    made = MADE(2, 4, (8,), condition_features=condition_features)
    return [
        AutoregressiveScore(AutoregressiveModel(made, GaussianHead(4)).double()),
        JointScore(ScoreNetwork(2, condition_features, (8,)).double()),
    ]


def test_no_gradient_flows_to_samples_or_conditions() -> None:
    for estimator in learned(condition_features=3):
        z, condition = normal(3, 2, 2).requires_grad_(), normal(3, 3).requires_grad_()
        shared = condition * 2.0
        estimator.update(z, shared)
        assert z.grad is None
        assert condition.grad is None
        (estimator.surrogate(z, shared) + shared.sum()).backward()  # the graph of the condition is still there
        assert torch.equal(condition.grad, torch.full_like(condition, 2.0))  # type: ignore[arg-type]


def test_learning_works_where_gradients_are_switched_off() -> None:
    for estimator in learned():
        with torch.no_grad():
            assert estimator.update(normal(3, 2, 2)) is not None


def test_dropout_is_on_while_learning_and_off_in_the_score() -> None:
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


def test_learning_goes_on_from_its_state() -> None:
    for first, second in zip(learned(), learned(), strict=True):
        assert isinstance(first, AutoregressiveScore | JointScore)
        assert isinstance(second, AutoregressiveScore | JointScore)
        first.update(normal(3, 2, 2))
        second.load_state_dict(first.state_dict())
        for each in (first, second):
            each.update(normal(3, 2, 2, seed=1), generator=torch.Generator().manual_seed(2))
        pairs = zip(first.network.state_dict().values(), second.network.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(3, 2), r"z: expected samples \(B, K, D\) with K at least 2, got \(3, 2\)"),
        (torch.zeros(3, 1, 2), "K at least 2"),
    ],
)
def test_samples_of_wrong_shapes_are_named(z: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stein().surrogate(z)


@pytest.mark.parametrize(
    ("estimator", "z", "message"),
    [
        (Stein(), torch.full((1, 3, 2), math.nan), "z: holds NaN or infinity"),
        (Stein(), torch.zeros(1, 5, 2), "the sampler has collapsed"),
        (Spectral(), torch.arange(10.0).view(1, 5, 2) * 1e30, "no eigenvalues"),
        (Known(lambda z: z / 0.0), torch.ones(1, 3, 2), "Known: the score of the samples is NaN or infinite"),
        (
            EncoderUnits(Known(lambda z: z), lambda _: (torch.zeros(1, 2), torch.full((1, 2), -100.0))),
            torch.ones(1, 3, 2),
            "NaN or infinite in units of the sampler",
        ),
    ],
)
def test_samples_that_are_none_any_more_are_a_divergence(estimator: EntropyGradient, z: Tensor, message: str) -> None:
    with pytest.raises(NonFiniteError, match=message):
        estimator.surrogate(z)


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
    with pytest.raises(ValueError, match="mix: only 1"):
        AutoregressiveScore(model, mix=0.5)
    with pytest.raises(ValueError, match="slices: expected at least 1"):
        JointScore(ScoreNetwork(2), slices=0)
    with pytest.raises(ValueError, match=r"Known: expected scores of shape \(1, 3, 2\), got \(1, 1, 2\)"):
        Known(lambda z: z[:, :1]).surrogate(torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match="one for each of the 3 inputs"):
        AutoregressiveScore(model).update(torch.zeros(3, 2, 2), torch.zeros(2, 1))
    noisy = AutoregressiveModel(MADE(2, 4, (8,)), ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 3))
    for each in (model, noisy):
        with pytest.raises(ValueError, match=r"expected shape \(\*, 2\)"):
            AutoregressiveScore(each).surrogate(torch.zeros(3, 2, 5, requires_grad=True))


def test_bad_conditions_and_dtypes_are_named() -> None:
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
    with pytest.raises(ValueError, match=r"z: expected torch\.float32, which the network has, got torch\.float64"):
        joint.update(z.double(), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="z: expected floating point numbers"):
        joint.update(torch.zeros(4, 5, 2, dtype=torch.long), torch.zeros(4, 3))
    for estimator in (Stein(), Spectral()):
        with pytest.raises(ValueError, match=r"kernels need single or double precision, got torch\.bfloat16"):
            estimator.surrogate(z.bfloat16())
    with pytest.raises(ValueError, match="z: the kernel of the samples has no eigenvalues"):
        Spectral().surrogate(1e30 * z)
    gaussian = GaussianEntropy(lambda condition: (torch.zeros(4, 2), torch.full((4, 2), math.nan)))
    with pytest.raises(ValueError, match="parameters: the log standard deviations hold NaN"):
        gaussian.surrogate(z)


def test_samples_that_no_gradient_can_reach_are_refused() -> None:
    z = torch.randn(1, 5, 2)
    with pytest.raises(ValueError, match="no gradient reaches what made the samples"):
        Known(lambda z: -z).surrogate(z)
    Known(lambda z: -z).surrogate(z.requires_grad_()).backward()
    torch.testing.assert_close(z.grad, z.detach() / 5.0)
    with torch.no_grad():
        Known(lambda z: -z).surrogate(z.detach())


def test_a_network_is_left_in_the_mode_that_it_was_in() -> None:
    network = ScoreNetwork(2)
    joint = JointScore(network)
    for mode in (True, False):
        joint.trained.train(mode)
        joint.score(torch.zeros(1, 3, 2))
        assert network.training is mode


def test_samples_far_from_what_scores_start_with_are_said() -> None:
    z = torch.randn(1, 100, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50.0])
    model = AutoregressiveModel(MADE(2, 4, (8,)), ScoreHead(4))
    with pytest.warns(UserWarning, match=r"samples vary by \d+ times what the scores start with \(dimension 1\)"):
        AutoregressiveScore(model).update(z)
    with pytest.warns(UserWarning, match="dimension 1"):
        JointScore(ScoreNetwork(2)).update(z)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.set_standardisation(torch.zeros(2), torch.tensor([1.0, 50.0]))
        AutoregressiveScore(model).update(z)
        unit = (torch.zeros(1, 2), torch.tensor([[0.0, math.log(50.0)]]))
        EncoderUnits(JointScore(ScoreNetwork(2)), lambda condition: unit).update(z)


def test_a_wrapped_estimator_goes_on_from_its_state() -> None:
    def wrapped() -> EncoderUnits:
        torch.manual_seed(3)
        return EncoderUnits(JointScore(ScoreNetwork(2)), lambda condition: (torch.zeros(1, 2), torch.zeros(1, 2)))

    z = torch.randn(1, 50, 2)
    first, second = wrapped(), wrapped()
    first.update(z, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(first.score(z), second.score(z))
    second.load_state_dict(first.state_dict())
    for estimator in (first, second):
        estimator.update(z, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first.score(z), second.score(z))
    assert Stein().state_dict() == {}
    with pytest.raises(ValueError, match="state: expected that of Stein"):
        Stein().load_state_dict(first.state_dict())


def test_a_loss_that_is_not_finite_makes_no_step() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4)).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="AutoregressiveScore: loss"):
        AutoregressiveScore(model).update(torch.full((2, 2, 2), 1e200, dtype=FLOAT64))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# The known distribution of the experiment "entropy" -----------------------------------------------------------------


def test_the_known_distribution_is_known() -> None:
    """Its scores are those of its log density, and its entropy's gradient that of the mean log slope."""
    sampler = entropy.Sampler.of(3, 0.7, 0.8)
    e = normal(1, 6, 3)
    widths = sampler.log_widths.detach().exp()

    def projected_log_prob(z: Tensor, d: int, before: Tensor) -> Tensor:
        """Of z_d given the value before it, by bisection for the noise and the slope of the map."""
        own = (z - before) / widths[d]
        low, high = torch.full_like(own, -20.0), torch.full_like(own, 20.0)
        for _ in range(80):
            middle = 0.5 * (low + high)
            below = middle + 0.8 * torch.tanh(3.0 * middle) < own
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        slope = 1.0 + 2.4 / torch.cosh(3.0 * middle).square()
        return -0.5 * middle.square() - torch.log(slope * widths[d])

    with torch.no_grad():
        z, step = sampler(e), 1e-5
        for d in range(3):
            before = 0.7 * z[..., d - 1] if d else torch.zeros_like(z[..., 0])
            up, down = (projected_log_prob(z[..., d] + h, d, before) for h in (step, -step))
            expected = (up - down) / (2.0 * step)
            torch.testing.assert_close(sampler.conditional_scores(e)[..., d], expected, rtol=1e-5, atol=1e-6)
    e = normal(1, 400_000, 3, seed=5)
    gradients = torch.autograd.grad(-(sampler.conditional_scores(e) * sampler(e)).sum(-1).mean(), sampler.parameters())
    found = torch.cat([gradient.flatten() for gradient in gradients])
    torch.testing.assert_close(found, sampler.true_gradient(), rtol=0.0, atol=0.03)


def test_the_conditionals_of_the_known_distribution_have_these_moments() -> None:
    sampler = entropy.Sampler.of(3, 0.7, 0.8)
    e = normal(1, 200_000, 3)
    with torch.no_grad():
        z = sampler(e)
        mean, log_std = sampler.moments(z)
        w = ((z - mean) * torch.exp(-log_std))[0]
        bent = (e + 0.8 * torch.tanh(3.0 * e))[0]
    ratio = (w / bent).nan_to_num(nan=1.0)
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))  # the noise alone, whatever came before
    torch.testing.assert_close(w.std(0), torch.ones(3, dtype=FLOAT64), rtol=0.01, atol=0.0)
    exact = entropy.Truth(sampler, e)
    torch.testing.assert_close(exact.pressure(z), torch.ones(3, dtype=FLOAT64), rtol=0.02, atol=0.0)
