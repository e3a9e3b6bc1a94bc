"""Models at their limits: tails, values far out and missing values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from arcsm import MADE, AutoregressiveModel, GaussianHead, LogisticMixtureHead, NoiseLadder, ScoreHead
from arcsm.denoise import GaussianNoise, particle_filter


def test_the_lower_tail_of_a_gaussian_is_exact() -> None:
    model = AutoregressiveModel(MADE(1, 4, (8,)), GaussianHead(4))
    with torch.no_grad():
        mean, variance = model.head.moments(model.head.project(model.context(torch.zeros(1, 1))))
    z = torch.tensor([-3.0, -5.0, -6.0, -8.0, -12.0])
    x = mean.flatten() + z * variance.sqrt().flatten()
    exact = torch.special.log_ndtr(z.double())
    assert torch.allclose(model.cdf(x[:, None]).log().flatten().double(), exact, rtol=1e-5)
    u = torch.tensor([[1e-8], [1e-10]])
    assert torch.allclose(model.cdf(model.icdf(u)), u, rtol=1e-3)


def test_icdf_inverts_cdf_in_the_lower_tail() -> None:
    for head in (GaussianHead(4), LogisticMixtureHead(4, 3)):
        model = AutoregressiveModel(MADE(1, 4, (8,)), head).double()
        x = torch.tensor([[-35.0], [-15.0], [0.3]], dtype=torch.float64)
        torch.testing.assert_close(model.icdf(model.cdf(x)), x, rtol=1e-9, atol=1e-9)


def test_gradients_of_cells_are_finite_for_far_rows() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4))
    x = torch.tensor([[0.0, 0.0], [12.0, 12.0]], requires_grad=True)
    model.log_prob(x, cells=[0.1, 0.1]).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_missing_values_have_no_score_and_no_posterior() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,), missing=True), GaussianHead(4), NoiseLadder(1.0, 0.1, 4))
    x = torch.tensor([[math.nan, 0.0]])
    s, ds = model.score(x)
    assert s.isnan().tolist() == ds.isnan().tolist() == [[True, False]]
    with pytest.raises(ValueError, match="y: contains missing values; fill them first"):
        particle_filter(model, x, GaussianNoise(0.5), 4)


@pytest.mark.parametrize("method", ["flow", "quadrature"])
def test_a_value_however_far_costs_no_more_evaluations_and_its_density_is_gaussian(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    ladder, evaluations = NoiseLadder(2.0, 0.1, 6), 0
    model = AutoregressiveModel(MADE(1, 4, (8,)), ScoreHead(4, (8,)), ladder).double()
    forward = ScoreHead._forward

    def counted(self: ScoreHead, level: Any, projection: Any, x: torch.Tensor, *rest: Any) -> Any:
        nonlocal evaluations
        evaluations += x.numel()
        return forward(self, level, projection, x, *rest)

    monkeypatch.setattr(ScoreHead, "_forward", counted)
    counts, values, far = [], [], [60.0, 1e3, 1e10, 1e30]
    for x in far:
        evaluations = 0
        values.append(
            model.log_prob(
                torch.tensor([[x]], dtype=torch.float64), method=method, tol=1e-9, max_evaluations=4096
            ).item()
        )
        counts.append(evaluations)
    assert len(set(counts)) == 1
    for a, b in zip(far[1:], values[1:], strict=True):  # log q(b) - log q(a) of a Gaussian
        precision = 2.0 * (values[0] - b) / (a**2 - far[0] ** 2)
        assert precision == pytest.approx(1.0 / 1.01, rel=1e-9)


def test_a_log_density_below_all_floats_is_minus_infinity() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,)), ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 4))
    log_prob = model.log_prob(torch.tensor([[1e30, 0.0], [-1e37, 0.0]]), reduce=False)
    assert log_prob[:, 0].tolist() == [-math.inf, -math.inf]  # -1e60 is beyond single precision
    assert bool(log_prob[:, 1].isfinite().all())
