"""The score head: its window, its noise levels, and the same scores from every way of computing them."""

import math

import pytest
import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead, objectives
from arcsm.heads.base import Sigma
from small_heads import FLOAT64, score_head


@pytest.mark.parametrize(("sigma", "data_std"), [(None, 1.0), (0.05, 0.5), (2.0, 0.5)])
def test_tails_are_exactly_gaussian(sigma: float | None, data_std: float) -> None:
    head = score_head(strength=30.0, hidden_features=(8, 8), sinusoids=3, data_std=data_std)
    variance = data_std**2 + (0.0 if sigma is None else sigma**2)
    edge = head.tail_start(sigma)
    assert edge == pytest.approx(20.0 * math.sqrt(variance))
    x = edge * torch.tensor([-50.0, -2.0, -1.0000001, 1.0000001, 2.0, 50.0], dtype=FLOAT64)
    s, ds = head.score_and_derivative(torch.randn(6, 3, dtype=FLOAT64), x, sigma)
    torch.testing.assert_close(s, -x / variance, rtol=1e-13, atol=0.0)
    torch.testing.assert_close(ds, torch.full_like(x, -1.0 / variance), rtol=1e-13, atol=0.0)


def test_natural_weight_cancels_the_squared_gain() -> None:
    head = score_head(hidden_features=(8,), data_std=0.7)
    sigma = torch.tensor([0.05, 0.5, 3.0], dtype=FLOAT64)
    gain = 0.7 / (sigma * torch.sqrt(sigma.square() + 0.7**2))
    torch.testing.assert_close(head.loss_weight(sigma) * gain.square(), torch.ones_like(sigma))


class WithProject(ScoreHead):
    def project(self, context: Tensor) -> Tensor:
        return super().project(2.0 * context)


class WithFeatures(ScoreHead):
    def fourier_features(
        self, x: Tensor, envelope_width: Tensor, blur: Tensor | None, tangent: bool = True, in_place: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        features, slopes = super().fourier_features(x, envelope_width, blur, tangent, in_place)
        return 2.0 * features, None if slopes is None else 2.0 * slopes


@pytest.mark.parametrize("kind", [WithProject, WithFeatures])
def test_a_subclass_is_trained_as_it_is_evaluated(kind: type[ScoreHead]) -> None:
    torch.manual_seed(0)
    head = kind(4, (8, 8), sinusoids=3)
    with torch.no_grad():
        head.output.weight.mul_(20.0)
    model = AutoregressiveModel(MADE(2, 4, (8,)), head)
    x = torch.randn(50, 2)
    s, ds = model.score(x)
    expected = (0.5 * s.square() + ds).sum(-1).mean()
    torch.testing.assert_close(objectives.csm(model, x), expected, rtol=1e-5, atol=1e-5)
    prepared, _ = head.prepare_score_and_derivative(None)(head.project(model.contexts(x)).flatten(0, 1), x.flatten())
    torch.testing.assert_close(prepared, s.flatten(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sigma", [None, "each"])
def test_scores_under_autocast_are_those_of_single_precision(sigma: float | str | None) -> None:
    torch.manual_seed(0)
    head, context, x = ScoreHead(4, (16, 16), sinusoids=3), torch.randn(40, 4), torch.randn(40)
    level = torch.full((40,), 0.3) if isinstance(sigma, str) else sigma
    expected = head.score_and_derivative(context, x, level)
    with torch.autocast("cpu", torch.bfloat16):
        found = head.score_and_derivative(context, x, level)
    for value, exact in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact, rtol=0.02, atol=0.02)


def test_values_may_have_any_strides() -> None:
    head, context, x = (
        score_head(hidden_features=(8, 8), sinusoids=2),
        torch.randn(5, 3, dtype=FLOAT64),
        torch.randn(4, 5),
    )
    transposed = x.double().T  # (5, 4)
    for contexts in (context.unsqueeze(1), context[0]):
        for level in (0.3, torch.full((5, 4), 0.3, dtype=FLOAT64)):
            found = head.score_and_derivative(contexts, transposed, level)
            expected = head.score_and_derivative(contexts, transposed.contiguous(), level)
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


class Shifted(ScoreHead):
    """The score of a normal distribution around 1, in place of the network."""

    mean = 1.0

    def projected_score_and_derivative(
        self, projection: Tensor, x: Tensor, sigma: Sigma = None
    ) -> tuple[Tensor, Tensor]:
        precision = 1.0 / (1.0 + (0.0 if sigma is None else sigma**2))
        s = (self.mean - x) * precision + 0.0 * projection[..., 0]
        return s, 0.0 * s - precision


class ShiftedTwice(Shifted):
    mean = 3.0

    def projected_score(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().projected_score_and_derivative(projection, x, sigma)[0]

    def projected_score_and_derivative(
        self, projection: Tensor, x: Tensor, sigma: Sigma = None
    ) -> tuple[Tensor, Tensor]:
        return super().projected_score_and_derivative(projection, x, sigma)


@pytest.mark.parametrize("kind", [Shifted, ShiftedTwice])
def test_a_subclass_with_a_score_of_its_own_has_one_score(kind: type[ScoreHead]) -> None:
    mean = 3.0 if kind is ShiftedTwice else 1.0
    torch.manual_seed(0)
    model = AutoregressiveModel(MADE(1, 4, (8,)), kind(4, (8,)), NoiseLadder(2.0, 0.1, 10)).double()
    x = torch.linspace(-2.0, 4.0, 7, dtype=FLOAT64)
    head, projection = model.head, model.head.project(model.contexts(x[:, None]))[:, 0].detach()
    expected = (mean - x) / 1.01
    for found in (
        head.score_and_derivative(model.contexts(x[:, None])[:, 0], x, 0.1)[0],
        head.score(model.contexts(x[:, None])[:, 0], x, 0.1),
        head.projected_score(projection, x, 0.1),
        head.prepare_score(0.1)(projection, x),
        head.prepare_score_and_derivative(0.1)(projection, x)[0],
        model.score_alone(x[:, None])[:, 0],
    ):
        torch.testing.assert_close(found, expected)
    drawn = model.sample(400, "fast_flow", torch.Generator().manual_seed(0))
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.15)


@pytest.mark.parametrize("method", ["projected_score", "prepare_score", "prepare_score_and_derivative"])
def test_a_faster_score_alone_is_no_new_score(method: str) -> None:
    expected = f"Half: overrides {method}, but inherits projected_score_and_derivative"
    with pytest.raises(TypeError, match=expected):
        type("Half", (ScoreHead,), {method: lambda self, *arguments: None})
