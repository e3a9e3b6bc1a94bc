"""The surrogate, the entropy ratio and changes of units, with known scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from arcsm.errors import NonFiniteError
from arcsm.implicit import (
    ConditionalUnits,
    EncoderUnits,
    EntropyGradient,
    GaussianEntropy,
    JointScore,
    ScoreNetwork,
    Spectral,
    Stein,
)
from small_vaes import FLOAT64, normal


class KnownScore(EntropyGradient):
    """An estimator that returns a known score."""

    def __init__(self, function: Callable[[Tensor], Tensor], estimates_conditionals: bool = False) -> None:
        self.function, self.estimates_conditionals = function, estimates_conditionals

    def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.function(z)


def gaussian_score(location: Tensor, std: Tensor) -> KnownScore:
    """Return the conditional scores of N(location, std^2), ``(B, D)`` each."""
    return KnownScore(lambda z: (location.unsqueeze(1) - z) / std.square().unsqueeze(1), estimates_conditionals=True)


def dependent_score() -> KnownScore:
    """Return the conditional scores of two latents: N(0, 1), then N(2 z_1, z_1^2 + 1)."""

    def scores(z: Tensor) -> Tensor:
        first, second = z.unbind(-1)
        return torch.stack([-first, (2.0 * first - second) / (first.square() + 1.0)], -1)

    return KnownScore(scores, estimates_conditionals=True)


def test_gradient_of_surrogate_is_that_of_entropy() -> None:
    log_std = torch.tensor([0.3, -1.0, 0.0], dtype=FLOAT64, requires_grad=True)
    z = log_std.exp() * normal(4, 50_000, 3)
    KnownScore(lambda z: -z * torch.exp(-2.0 * log_std)).surrogate(z).backward()
    assert log_std.grad is not None
    torch.testing.assert_close(log_std.grad, torch.ones(3, dtype=FLOAT64), rtol=0.0, atol=0.02)


def test_no_gradient_flows_into_the_score() -> None:
    weight = torch.ones((), dtype=FLOAT64, requires_grad=True)
    z = normal(1, 5, 2).requires_grad_()
    KnownScore(lambda z: weight * z).surrogate(z).backward()
    assert weight.grad is None
    assert z.grad is not None


def test_conditional_scores_suffice_only_for_autoregressive_samplers() -> None:
    """The entropies of z_2 = a z_1 + e_2, and of z_1 = e_1 + b e_2 with z_2 = e_2, do not depend on a and b."""
    e = normal(1, 400_000, 2)
    a = torch.tensor(0.7, dtype=FLOAT64, requires_grad=True)
    z = torch.stack([e[..., 0], a * e[..., 0] + e[..., 1]], -1)
    KnownScore(lambda z: torch.stack([-z[..., 0], -(z[..., 1] - 0.7 * z[..., 0])], -1)).surrogate(z).backward()
    assert abs(float(a.grad)) < 0.01  # type: ignore[arg-type]

    b = torch.tensor(0.7, dtype=FLOAT64, requires_grad=True)
    z = torch.stack([e[..., 0] + b * e[..., 1], e[..., 1]], -1)
    variance = 1.0 + 0.7**2
    first = lambda z: -z[..., 0] / variance  # noqa: E731
    second = lambda z: -(z[..., 1] - 0.7 / variance * z[..., 0]) * variance  # noqa: E731
    KnownScore(lambda z: torch.stack([first(z), second(z)], -1)).surrogate(z).backward()
    assert float(b.grad) == pytest.approx(0.7 / variance, abs=0.01)  # type: ignore[arg-type]  # the documented bias
    b.grad = None
    joint = lambda z: torch.stack([-(z[..., 0] - 0.7 * z[..., 1]), 0.7 * z[..., 0] - variance * z[..., 1]], -1)  # noqa: E731
    z = torch.stack([e[..., 0] + b * e[..., 1], e[..., 1]], -1)
    KnownScore(joint).surrogate(z).backward()
    assert abs(float(b.grad)) < 0.01  # type: ignore[arg-type]


def test_gaussian_entropy_and_score_match_torch_distributions() -> None:
    log_std = normal(4, 3)
    gaussian = GaussianEntropy(lambda condition: (torch.zeros(4, 3, dtype=FLOAT64), log_std))
    expected = torch.distributions.Normal(torch.zeros(4, 3, dtype=FLOAT64), log_std.exp()).entropy().sum(1).mean()
    torch.testing.assert_close(gaussian.surrogate(normal(4, 2, 3)), expected)
    z = normal(4, 2, 3).requires_grad_()
    log_prob = torch.distributions.Normal(0.0, log_std.exp()[:, None]).log_prob(z).sum()
    torch.testing.assert_close(gaussian.score(z.detach()), torch.autograd.grad(log_prob, z)[0])


def test_entropy_ratio_of_true_scores_is_one_for_any_number_of_samples() -> None:
    std = torch.tensor([[0.1, 5.0]], dtype=FLOAT64)
    location = 3.0 * normal(20_000, 2)
    z = location.unsqueeze(1) + std.unsqueeze(1) * normal(20_000, 2, 2, seed=1)  # the smallest number for each input
    flat = gaussian_score(location, std * torch.tensor([[2.0, 1.0]])).entropy_ratio(z)
    torch.testing.assert_close(flat, torch.tensor([0.25, 1.0], dtype=FLOAT64), atol=0.03, rtol=0.0)
    noise = normal(20_000, 2, 2, seed=2)
    first = noise[..., 0]
    z = torch.stack([first, 2.0 * first + (first.square() + 1.0).sqrt() * noise[..., 1]], -1)
    torch.testing.assert_close(dependent_score().entropy_ratio(z), torch.ones(2, dtype=FLOAT64), atol=0.03, rtol=0.0)
    with pytest.raises(ValueError, match="K at least 2"):
        gaussian_score(location, std).entropy_ratio(z[:, :1])


def test_encoder_units_preserve_the_score() -> None:
    location, log_scale = normal(3, 2), 0.3 * normal(3, 2, seed=1)
    z = location.unsqueeze(1) + 2.0 * log_scale.exp().unsqueeze(1) * normal(3, 5, 2, seed=2)
    plain = gaussian_score(location, 2.0 * log_scale.exp())
    inner = gaussian_score(torch.zeros(3, 2, dtype=FLOAT64), torch.full((3, 2), 2.0, dtype=FLOAT64))
    rescaled = EncoderUnits(inner, lambda condition: (location, log_scale))
    torch.testing.assert_close(rescaled.score(z), plain.score(z))


def test_conditional_units_standardise_and_map_scores_back() -> None:
    def moments(z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        first, zero = z[..., 0], torch.zeros_like(z[..., 0])
        return torch.stack([zero, 2.0 * first], -1), torch.stack([zero, 0.5 * (first.square() + 1.0).log()], -1)

    noise = normal(1, 5, 2)
    first = noise[..., 0]
    z = torch.stack([first, 2.0 * first + (first.square() + 1.0).sqrt() * noise[..., 1]], -1)
    standard = ConditionalUnits(
        gaussian_score(torch.zeros(1, 2, dtype=FLOAT64), torch.ones(1, 2, dtype=FLOAT64)), moments
    )
    torch.testing.assert_close(standard.rescale(z, None)[0], noise)
    torch.testing.assert_close(standard.score(z), dependent_score().score(z))


@pytest.mark.parametrize("inner", [Stein(), JointScore(ScoreNetwork(2)), EncoderUnits(Stein(), lambda condition: None)])
def test_conditional_units_reject_joint_scores(inner: EntropyGradient) -> None:
    with pytest.raises(ValueError, match=f"expected scores of conditionals, got {type(inner).__name__}"):
        ConditionalUnits(inner, lambda z, condition: (z, z))


@pytest.mark.parametrize(
    ("estimator", "z", "message"),
    [
        (Stein(), torch.full((1, 3, 2), math.nan), "z: holds NaN or infinity"),
        (Stein(), torch.zeros(1, 5, 2), "the sampler has collapsed"),
        (Spectral(), torch.arange(10.0).view(1, 5, 2) * 1e30, "no eigenvalues"),
        (
            EncoderUnits(KnownScore(lambda z: z), lambda _: (torch.zeros(1, 2), torch.full((1, 2), -100.0))),
            torch.ones(1, 3, 2),
            "NaN or infinite in the sampler's units",
        ),
    ],
)
def test_collapsed_or_non_finite_samples_raise_non_finite_error(
    estimator: EntropyGradient, z: Tensor, message: str
) -> None:
    with pytest.raises(NonFiniteError, match=message):
        estimator.surrogate(z)


def test_detached_samples_are_rejected() -> None:
    z = torch.randn(1, 5, 2)
    with pytest.raises(ValueError, match="detached from the sampler"):
        KnownScore(lambda z: -z).surrogate(z)
    KnownScore(lambda z: -z).surrogate(z.requires_grad_()).backward()
    torch.testing.assert_close(z.grad, z.detach() / 5.0)
    with torch.no_grad():
        KnownScore(lambda z: -z).surrogate(z.detach())


def test_mismatched_scores_and_conditions_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"KnownScore: expected scores of shape \(1, 3, 2\), got \(1, 1, 2\)"):
        KnownScore(lambda z: z[:, :1]).surrogate(torch.zeros(1, 3, 2))
    gaussian = GaussianEntropy(lambda condition: (torch.zeros(4, 2), torch.full((4, 2), math.nan)))
    with pytest.raises(ValueError, match="parameters: the log standard deviations hold NaN"):
        gaussian.surrogate(torch.randn(4, 5, 2))
