"""Heads that users may write, at the edges of the contract: no parameters, no moments, levels without end."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import arcsm
from arcsm import (
    MADE,
    AnyOrder,
    AutoregressiveModel,
    GaussianHead,
    Head,
    MixedHead,
    NormalisedHead,
    ScoreHead,
    registry,
)
from arcsm.conditionals import Conditionals
from arcsm.heads.base import ScoreAndDerivative, Sigma
from arcsm.queries import Levels, complete, probability
from small_heads import FLOAT64


class UnitNormal(Head):
    """The context is the mean; there is nothing to learn in the head."""

    context_features = 1

    def project(self, context: Tensor) -> Tensor:
        return context

    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> ScoreAndDerivative:
        precision = 1.0 / (1.0 + (0.0 if sigma is None else sigma**2))
        s = (projection[..., 0] - x) * precision
        return s, torch.zeros_like(s) - precision


class ContextNormal(NormalisedHead):
    """The context is the mean and the log of the standard deviation."""

    def __init__(self, context_features: int = 2) -> None:
        super().__init__()
        self.context_features = context_features

    def project(self, context: Tensor) -> Tensor:
        return context

    def _moments(self, projection: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
        variance = (2.0 * projection[..., 1]).exp() + (0.0 if sigma is None else sigma**2)
        return projection[..., 0], variance.sqrt()

    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> ScoreAndDerivative:
        mean, std = self._moments(projection, sigma)
        s = (mean - x) / std**2
        return s, torch.zeros_like(s) - std**-2

    def projected_log_prob(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        mean, std = self._moments(projection, sigma)
        return -0.5 * ((x - mean) / std) ** 2 - std.log() - 0.5 * math.log(2.0 * math.pi)

    def projected_cdf(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        mean, std = self._moments(projection, sigma)
        return torch.special.ndtr((x - mean) / std)

    def bracket(self, projection: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        mean, std = self._moments(projection, sigma)
        return mean - 8.0 * std, mean + 8.0 * std


class Cauchy(NormalisedHead):
    """A density without moments, whose bracket is 10^9 times as wide as its middle."""

    def __init__(self, context_features: int = 4) -> None:
        super().__init__()
        self.context_features = context_features
        self.parameters_of = nn.Linear(context_features, 2)

    def project(self, context: Tensor) -> Tensor:
        return self.parameters_of(context)  # type: ignore[no-any-return]

    def _standardised(self, projection: Tensor, x: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
        if sigma is not None:
            raise ValueError("sigma: a Cauchy distribution has no noise")
        scale = projection[..., 1].exp()
        return (x - projection[..., 0]) / scale, scale

    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> ScoreAndDerivative:
        z, scale = self._standardised(projection, x, sigma)
        return -2.0 * z / (1.0 + z**2) / scale, -2.0 * (1.0 - z**2) / (1.0 + z**2) ** 2 / scale**2

    def projected_log_prob(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        z, scale = self._standardised(projection, x, sigma)
        return -torch.log(math.pi * scale) - torch.log1p(z**2)

    def projected_cdf(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        z, _ = self._standardised(projection, x, sigma)
        return torch.where(z < -1.0, torch.atan(-1.0 / z) / math.pi, 0.5 + torch.atan(z) / math.pi)

    def bracket(self, projection: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        far = 1e9 * projection[..., 1].exp()
        return projection[..., 0] - far, projection[..., 0] + far


class Poisson(NormalisedHead):
    """Counts, which have no largest one."""

    discrete, has_score = True, False

    def __init__(self, context_features: int = 4) -> None:
        super().__init__()
        self.context_features = context_features
        self.log_rate = nn.Linear(context_features, 1)

    def project(self, context: Tensor) -> Tensor:
        return self.log_rate(context)  # type: ignore[no-any-return]

    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> ScoreAndDerivative:
        raise ValueError("counts have no score")

    def projected_log_prob(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        count = x.round().clamp(min=0.0)
        log_mass = count * projection[..., 0] - projection[..., 0].exp() - torch.lgamma(count + 1.0)
        return torch.where(count == x, log_mass, -math.inf)

    def projected_cdf(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        count = x.floor() + 0.0 * projection[..., 0]
        below = torch.special.gammaincc(count.clamp(min=0.0) + 1.0, projection[..., 0].exp().expand_as(count))
        return torch.where(count < 0.0, 0.0, below)

    def bracket(self, projection: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        rate = projection[..., 0].exp()
        return -torch.ones_like(rate), rate + 10.0 * rate.sqrt() + 30.0


class OwnNetwork(ScoreHead):
    """A normal distribution around a mean from a network of its own."""

    def __init__(self, context_features: int = 4) -> None:
        super().__init__(context_features, (2,))
        self.mean = nn.Linear(context_features, 1)

    def project(self, context: Tensor) -> Tensor:
        return self.mean(context)  # type: ignore[no-any-return]

    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> ScoreAndDerivative:
        precision = 1.0 / (1.0 + (0.0 if sigma is None else sigma**2))
        s = (projection[..., 0] - x) * precision
        return s, torch.zeros_like(s) - precision

    def config(self) -> dict[str, object]:
        return {"context_features": self.context_features}


@pytest.mark.parametrize("kind", [ContextNormal, Cauchy, Poisson, OwnNetwork])
def test_a_correct_head_passes(kind: Callable[[], Head], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "check_registered", lambda *_: None)
    arcsm.check(kind())


def test_a_head_without_parameters_samples() -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(MADE(3, 1, (8,)), UnitNormal())
    assert model.sample(500, "langevin", generator=torch.Generator().manual_seed(0)).std(0).min() > 0.8
    model = AutoregressiveModel(MADE(3, 2, (8,)), ContextNormal()).double()
    drawn = model.sample(5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.icdf(model.cdf(drawn)), drawn)
    quadrature = model.log_prob(drawn, method="quadrature")
    torch.testing.assert_close(quadrature, model.log_prob(drawn), rtol=0.0, atol=1e-4)


def test_counts_are_drawn_as_counts_and_may_be_constrained() -> None:
    torch.manual_seed(0)
    head = MixedHead([Poisson(4), GaussianHead(4)], (0, 1))
    model = AutoregressiveModel(AnyOrder(2, 4, (8,), 8), head).double()
    drawn = model.sample(400, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:, 0], drawn[:, 0].round())
    assert model.log_prob(drawn).isfinite().all()
    event = {0: Levels([0, 2])}
    rows = torch.tensor([[0.0, math.nan], [2.0, math.nan]], dtype=FLOAT64)
    truth = model.log_prob(rows).exp().sum().item()
    assert probability(model, event)[0].item() == pytest.approx(truth, abs=1e-9)
    unknown = torch.full((1, 2), math.nan, dtype=FLOAT64)
    assert set(complete(model, unknown, 50, event).rows[0, :, 0].tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("offset", [0.0, 0.2, 0.4, 0.45])
def test_rare_cells_may_hold_a_narrow_mode(offset: float) -> None:
    """The density at the middle of the cell says nothing of a mode beside it."""
    weights, means, scales = (
        torch.tensor([0.999, 1e-3, 6e-5]).log(),
        torch.tensor([0.0, 0.0, 9.0 + offset]),
        (0.5, 200.0, 0.03),
    )
    raw = torch.log(torch.expm1(torch.tensor(scales).log() + 7.0)) - 7.0
    projection = torch.cat([weights, means, raw]).double()[None]
    head = arcsm.LogisticMixtureHead(1, 3).double()
    x, half = torch.tensor([9.0], dtype=FLOAT64), torch.tensor([0.5], dtype=FLOAT64)
    high, low = (head.projected_cdf(projection, x + sign * half) for sign in (1.0, -1.0))
    for dtype, tolerance in ((FLOAT64, 1e-8), (torch.float32, 0.02)):
        conditionals = Conditionals(head.to(dtype), projection.to(dtype), (), "closed_form")
        found = conditionals.log_mean_density(x.to(dtype), half.to(dtype)).double()
        torch.testing.assert_close(found, (high - low).log(), rtol=0.0, atol=tolerance)


def test_integrals_reject_vmap() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,)), ScoreHead(4, (8,)))
    for function in (model.log_prob, model.cdf):
        with pytest.raises(NotImplementedError, match="vmap cannot integrate conditionals"):
            torch.func.vmap(function)(torch.zeros(3, 2))


def test_cells_are_finite() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4))
    with pytest.raises(ValueError, match="cells: expected 2 finite steps"):
        model.log_prob(torch.zeros(3, 2), cells=[math.inf, 1.0])
