"""A head that users may write, at the edge of the contract: levels without end."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import arcsm
from arcsm import AnyOrder, AutoregressiveModel, GaussianHead, MixedHead, NormalisedHead, registry
from arcsm.heads.base import ScoreAndDerivative, Sigma
from arcsm.queries import Levels, complete, probability
from small_heads import FLOAT64


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


def test_counts_are_drawn_as_counts_and_may_be_constrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "check_registered", lambda *_: None)
    arcsm.check(Poisson())
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
