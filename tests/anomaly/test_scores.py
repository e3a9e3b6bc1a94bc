"""Outlier scores against closed forms and on samples of the model itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from arcsm import AutoregressiveModel, Context, GaussianHead, NoiseLadder
from arcsm.anomaly import kolmogorov_smirnov, negative_log_prob, outlier_scores, pit_statistics, score_norms, score_sum
from arcsm.metrics import pit_uniformity
from small_models import MakeModel

SLOPE, OFFSET, STD = 0.6, 0.2, 0.8
SHIFT, SCALE = 1.5, 2.0


class Previous(Context):
    """A context that returns the previous value."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features, self.context_features, self.order = features, 1, tuple(range(features))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], -1).unsqueeze(-1)

    def begin(self, batch_shape: Sequence[int], condition: Tensor | None = None) -> Tensor:
        return torch.zeros(*batch_shape, 1, dtype=torch.float64)

    def step(self, state: Tensor, x_previous: Tensor | None) -> Tensor:
        return state if x_previous is None else x_previous.unsqueeze(-1)

    def config(self) -> dict[str, Any]:
        return {"features": self.features}


def autoregression(features: int = 5, noise: NoiseLadder | None = None) -> AutoregressiveModel:
    """Return a Gaussian autoregression ``N(SLOPE x_{d-1} + OFFSET, STD^2)`` in standardised units."""
    head = GaussianHead(1)
    with torch.no_grad():
        head.parameters_of.weight.copy_(torch.tensor([[SLOPE], [0.0]]))
        raw = math.log(math.expm1(math.log(STD) + 7.0)) - 7.0  # inverts the head's floor
        head.parameters_of.bias.copy_(torch.tensor([OFFSET, raw]))
    model = AutoregressiveModel(Previous(features), head, noise).double().eval()
    model.set_standardisation(SHIFT, SCALE)
    return model


def deviations(x: Tensor) -> Tensor:
    """Return the deviations of standardised values from their conditional means."""
    z = (x - SHIFT) / SCALE
    return z - SLOPE * torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1) - OFFSET


@pytest.fixture
def rows() -> Tensor:
    return 3.0 * torch.randn(7, 5, dtype=torch.float64)


def test_sums_and_norms_of_scores(rows: Tensor, ladder: NoiseLadder) -> None:
    model = autoregression(noise=ladder)
    norms = score_norms(model, rows)
    assert norms.shape == (7, ladder.levels)
    for level, sigma in enumerate(ladder.sigmas):
        s = -deviations(rows) / (STD**2 + sigma**2)
        for sign in (1.0, -1.0):
            torch.testing.assert_close(score_sum(model, rows, level, sign), sign * s.sum(1), rtol=1e-6, atol=0)
        torch.testing.assert_close(norms[:, level], s.norm(dim=1), rtol=1e-6, atol=0)


def test_likelihood_and_pit_statistics(rows: Tensor) -> None:
    model = autoregression()
    standard = deviations(rows) / STD
    nats = (0.5 * standard.square() + math.log(STD * SCALE * math.sqrt(2.0 * math.pi))).sum(1)
    torch.testing.assert_close(negative_log_prob(model, rows), nats, rtol=1e-6, atol=0)
    table = outlier_scores(model, rows)
    torch.testing.assert_close(table["-log q, closed_form"], nats, rtol=1e-6, atol=0)
    torch.testing.assert_close(table["PIT squares, closed_form"], standard.square().sum(1), rtol=1e-5, atol=0)
    lag = (standard[:, 1:] * standard[:, :-1]).sum(1) / standard.square().sum(1)
    torch.testing.assert_close(table["PIT lag 1, closed_form"], lag, rtol=0, atol=1e-5)
    u = torch.special.ndtr(standard)
    torch.testing.assert_close(table["PIT KS, closed_form"], kolmogorov_smirnov(u), rtol=0, atol=1e-6)


def test_one_pass_matches_the_methods_of_the_model(
    make_model: MakeModel, ladder: NoiseLadder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(features=4, noise=ladder, shift=0.3, scale=1.7, order=(2, 0, 3, 1))
    x = 1.5 * torch.randn(9, 4, dtype=torch.float64)
    monkeypatch.setattr("arcsm.anomaly.scores.VALUES_AT_A_TIME", 8)  # two rows at a time
    monkeypatch.setattr("arcsm.conditionals.conditionals.CONDITIONALS_AT_A_TIME", 3)
    table = outlier_scores(model, x, tol=1e-6)
    for method in ("flow", "quadrature"):
        nats = -model.log_prob(x, method=method, tol=1e-6)
        torch.testing.assert_close(table[f"-log q, {method}"], nats, rtol=0, atol=1e-4)
        u = model.cdf(x, method=method, tol=1e-6)[:, [2, 0, 3, 1]]
        for name, column in pit_statistics(u).items():
            torch.testing.assert_close(table[f"PIT {name}, {method}"], column, rtol=1e-4, atol=1e-4)
    for level, sigma in enumerate(ladder.sigmas):
        s = model.score(x, level)[0] * model.scale
        torch.testing.assert_close(table[f"h, {sigma:.4g}"], s.sum(1))
        torch.testing.assert_close(table[f"|s|, {sigma:.4g}"], s.norm(dim=1))


@pytest.mark.parametrize("kind", ["score", "mixture"])
def test_pit_values_of_the_models_samples_are_uniform(kind: str, make_model: MakeModel, ladder: NoiseLadder) -> None:
    count_features, count = 6, 400
    model = make_model(kind, features=count_features, noise=ladder)
    x = model.sample(count, generator=torch.Generator().manual_seed(1))
    assert pit_uniformity(model.cdf(x).detach()).p_value > 1e-3
    table = outlier_scores(model, x)
    by = "flow" if kind == "score" else "closed_form"
    expected = {  # mean and standard deviation for independent uniform values
        "squares": (count_features, math.sqrt(2.0 * count_features)),
        "tails": (2.0 - math.log(4.0), math.sqrt((4.0 - math.pi**2 / 3.0) / count_features)),
        "AD": (1.0, math.sqrt(2.0 / 3.0 * (math.pi**2 - 9.0))),
    }
    for name, (mean, deviation) in expected.items():
        found = float(table[f"PIT {name}, {by}"].mean())
        assert found == pytest.approx(mean, abs=4.0 * deviation / math.sqrt(count)), name
    assert abs(float(table[f"PIT lag 1, {by}"].mean())) < 4.0 / math.sqrt(count * count_features)


@pytest.mark.parametrize("score", [score_sum, outlier_scores])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.full((1, 5), math.nan), "NaN"),
        (torch.zeros(3, 4), r"expected shape \(\*, 5\)"),
        (torch.zeros(2, 3, 5), r"shape \(N, 5\)"),
        (torch.zeros(0, 5), "at least one"),
        ([[0.0] * 5], "torch.Tensor"),
    ],
)
def test_invalid_rows_raise_in_one_line(score: Callable[..., Any], x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        score(autoregression(), x)
    assert len(str(error.value).splitlines()) == 1
