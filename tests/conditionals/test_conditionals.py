"""Conditionals: differentiable quadrature, closed-form quantiles, evaluations."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, GaussianHead, Head, NoiseLadder, ScoreHead
from arcsm.conditionals.conditionals import Accuracy, Conditionals, Method, compiled_scores
from arcsm.errors import AccuracyWarning
from small_heads import TwoNormals
from small_models import MakeModel, points


def conditionals_at(model: AutoregressiveModel, x: Tensor, sigma: float) -> tuple[Conditionals, Tensor]:
    """Return accurately integrated conditionals of rows and their values, ``(N,)``."""
    projection = model.head.project(model.context(x)).flatten(0, 1)
    return Conditionals(model.head, projection, (sigma,), "quadrature", Accuracy(1e-8, 1024)), x.flatten()


def test_differentiable_quadrature_has_the_value_and_the_gradients_of_the_closed_form(make_model: MakeModel) -> None:
    model = make_model("gaussian")
    x = points(model, 12)
    results = []
    for function in (
        Conditionals.differentiable_log_prob,
        lambda conditionals, z: model.head.projected_log_prob(conditionals.projection, z, 0.3),
    ):  # type: ignore[operator]
        value = function(*conditionals_at(model, x, 0.3))
        results.append([value, *torch.autograd.grad(value.square().sum(), list(model.parameters()))])
    for integrated, closed in zip(*results, strict=True):
        torch.testing.assert_close(integrated, closed, rtol=1e-6, atol=1e-6)


def test_differentiable_quadrature_has_the_gradients_of_the_integrated_density(make_model: MakeModel) -> None:
    model = make_model()
    x = points(model, 6)
    conditionals, values = conditionals_at(model, x, 0.3)
    log_prob = conditionals.differentiable_log_prob(values)
    torch.testing.assert_close(log_prob, conditionals.log_prob(values), rtol=0.0, atol=1e-6)
    log_prob.sum().backward()
    for parameter in model.parameters():
        direction = torch.randn_like(parameter)
        sums = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                parameter.add_(1e-4 * sign * direction)
                moved, values = conditionals_at(model, x, 0.3)
                sums.append(moved.log_prob(values).sum())
                parameter.sub_(1e-4 * sign * direction)
        assert parameter.grad is not None
        expected = (sums[0] - sums[1]) / 2e-4
        torch.testing.assert_close((parameter.grad * direction).sum(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["flow", "quadrature"])
def test_quantiles_far_in_the_tails_are_those_of_a_gaussian(method: Method) -> None:
    head = ScoreHead(context_features=1, hidden_features=(2,)).double()
    torch.nn.init.zeros_(head.output.weight)
    path = (1.0, 0.5, 0.25)
    tails = 10.0 ** -torch.tensor([7.0, 9.0, 11.0, 12.0, 13.0, 14.0, 20.0, 30.0, 60.0], dtype=torch.float64)
    upper = 1.0 - tails[:6]
    u = torch.cat([torch.tensor([0.1], dtype=torch.float64), tails, upper])
    conditionals = Conditionals(head, torch.zeros(len(u), 2, dtype=torch.float64), path, method)
    expected = torch.special.ndtri(torch.cat([u[:10], 1.0 - upper]))
    expected[10:] *= -1.0
    x = conditionals.icdf(u)
    torch.testing.assert_close(x / x[0], expected / expected[0], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(conditionals.cdf(x)[:10], u[:10], rtol=1e-3, atol=0.0)


@pytest.mark.parametrize(
    ("kind", "half", "dtype"),
    [("gaussian", 0.05, torch.float32), ("score", 0.005, torch.float64), ("score", 1.5, torch.float32)],
)
def test_mean_densities_over_cells_are_right_far_in_the_tails(kind: str, half: float, dtype: torch.dtype) -> None:
    head: Head = GaussianHead(1) if kind == "gaussian" else ScoreHead(1, (2,))
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    head = head.to(dtype)
    x = torch.linspace(-12.0, 12.0, 49, dtype=dtype)
    projection = head.project(torch.zeros(len(x), 1, dtype=dtype)).detach()
    s, ds = head.projected_score_and_derivative(projection, torch.zeros_like(x), None)
    mean, deviation = (-s / ds).double(), (-ds).double().rsqrt()
    method: Method = "closed_form" if kind == "gaussian" else "quadrature"
    found = Conditionals(head, projection, (), method).log_mean_density(x, torch.full_like(x, half))
    points, weights = (torch.from_numpy(rule) for rule in np.polynomial.legendre.leggauss(100))
    z = (x.double()[:, None] + half * points - mean[:, None]) / deviation[:, None]
    log_density = -0.5 * z.square() - 0.5 * math.log(2.0 * math.pi) - deviation.log()[:, None]
    expected = torch.logsumexp(log_density + torch.log(0.5 * weights), 1)
    torch.testing.assert_close(found.detach().double(), expected, rtol=2e-5, atol=3e-4)


@pytest.mark.parametrize(
    ("path", "half", "dtype"),
    [((0.3,), 0.01, torch.float64), ((3.0, 0.3), 0.01, torch.float32), ((3.0, 0.3), 0.5, torch.float64)],
)
@torch.no_grad()
def test_mean_densities_beside_noise_are_right_however_far_out(
    path: tuple[float, ...], half: float, dtype: torch.dtype
) -> None:
    head = ScoreHead(1, (2,))
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    head = head.to(dtype)
    x = torch.tensor([0.0, 0.7, -3.0, 12.0, 40.0, -500.0, 1e4, 1e5], dtype=dtype)
    projection = head.project(torch.zeros(len(x), 1, dtype=dtype))
    method: Method = "flow" if len(path) > 1 else "quadrature"
    conditionals = Conditionals(head, projection, path, method, Accuracy(1e-4), continuous=True)
    for compiled in (None, compiled_scores(head)):
        found = replace(conditionals, compiled=compiled).log_mean_density(x, torch.full_like(x, half))
        points, weights = (torch.from_numpy(rule) for rule in np.polynomial.legendre.leggauss(100))
        variance = 1.0 + 0.3**2
        log_density = -0.5 * (x.double()[:, None] + half * points).square() / variance
        log_density = log_density - 0.5 * math.log(2.0 * math.pi * variance)
        expected = torch.logsumexp(log_density + torch.log(0.5 * weights), 1)
        usual = x.abs() < 100.0
        torch.testing.assert_close(found.double()[usual], expected[usual], rtol=2e-5, atol=3e-4)
        torch.testing.assert_close(found.double()[~usual], expected[~usual], rtol=2e-3, atol=0.0)


@pytest.mark.parametrize("noise", [None, NoiseLadder(0.5, 0.1, 4)])
def test_mass_outside_the_range_of_a_replaced_network_is_reported(noise: NoiseLadder | None) -> None:
    def model(mode: float) -> AutoregressiveModel:
        return AutoregressiveModel(MADE(1, 1, (2,)), TwoNormals((mode, mode + 1.0), 0.2), noise).double()

    x = torch.tensor([[15.3]], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(15.0).log_prob(x)
        model(15.0).sample(3)
    for call in (lambda far: far.log_prob(x), lambda far: far.sample(3), lambda far: far.icdf(0.0 * x + 0.5)):
        with pytest.warns(AccuracyWarning, match="TwoNormals: some mass lies beyond 20"):
            call(model(25.0))
