"""Invariants of every head: score, derivative, density and CDF agree; everything broadcasts; configs rebuild."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from arcsm import Head, LogisticMixtureHead, ScoreHead
from arcsm._runtime.memory import Workspace
from small_heads import FLOAT64, HEADS, NORMALISED_HEADS, SIGMAS, differentiate, noise_level


@pytest.mark.parametrize("sigma_kind", SIGMAS)
@pytest.mark.parametrize("name", HEADS)
def test_derivative_is_the_derivative_of_the_score(name: str, sigma_kind: float | str | None) -> None:
    head = HEADS[name]()
    x = torch.cat([torch.randn(40, dtype=FLOAT64), torch.linspace(-30, 30, 41, dtype=FLOAT64)]).requires_grad_()
    s, ds = head.score_and_derivative(torch.randn(81, 3, dtype=FLOAT64), x, noise_level(sigma_kind, (81,)))
    torch.testing.assert_close(ds, differentiate(s, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma_kind", SIGMAS)
@pytest.mark.parametrize("name", HEADS)
def test_score_equals_the_score_beside_its_derivative(name: str, sigma_kind: float | str | None) -> None:
    head = HEADS[name]()
    x, sigma = 4.0 * torch.randn(50, dtype=FLOAT64), noise_level(sigma_kind, (50,))
    projection = head.project(torch.randn(50, 3, dtype=FLOAT64))
    torch.testing.assert_close(
        head.projected_score(projection, x, sigma), head.projected_score_and_derivative(projection, x, sigma)[0]
    )


@pytest.mark.parametrize("sigma_kind", SIGMAS)
@pytest.mark.parametrize("name", HEADS)
def test_prepared_level_gives_the_same_scores_at_every_call(name: str, sigma_kind: float | str | None) -> None:
    head = HEADS[name]()
    for rows in (1, 50):  # with one row, in-place operations must not overwrite tensors of the level
        sigma = noise_level(sigma_kind, (rows,))
        projection = head.project(torch.randn(rows, 3, dtype=FLOAT64)).detach()
        with torch.no_grad():
            score, both = head.prepare_score(sigma), head.prepare_score_and_derivative(sigma)
            for scale in (4.0, 4.0, 40.0):
                x = scale * torch.randn(rows, dtype=FLOAT64)
                expected = head.projected_score_and_derivative(projection, x, sigma)
                torch.testing.assert_close(score(projection, x), expected[0], rtol=1e-12, atol=1e-12)
                torch.testing.assert_close(both(projection, x), expected, rtol=1e-12, atol=1e-12)
            if not isinstance(sigma, Tensor):
                x = 4.0 * torch.randn(rows, 7, dtype=FLOAT64)
                expected = head.projected_score_and_derivative(projection.unsqueeze(1), x, sigma)
                torch.testing.assert_close(both(projection.unsqueeze(1), x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
def test_levels_sharing_a_workspace_keep_their_results(name: str) -> None:
    head, workspace = HEADS[name](), Workspace()
    projection, x = head.project(torch.randn(9, 3, dtype=FLOAT64)).detach(), torch.randn(9, dtype=FLOAT64)
    with torch.no_grad():
        levels = {sigma: head.prepare_score_and_derivative(sigma, workspace) for sigma in (0.1, 0.7)}
        results = {sigma: level(projection, x) for sigma, level in levels.items()}
        row_results = levels[0.1](projection[:4].unsqueeze(1), x[:4, None].repeat(1, 5))
        levels[0.7](torch.zeros_like(projection), torch.zeros_like(x))
        for sigma, result in results.items():
            torch.testing.assert_close(
                result, head.projected_score_and_derivative(projection, x, sigma), rtol=1e-10, atol=1e-10
            )
        for result, expected in zip(row_results, results[0.1], strict=True):
            torch.testing.assert_close(result, expected[:4, None].expand(4, 5))


@pytest.mark.parametrize("name", HEADS)
def test_nan_does_not_affect_other_values(name: str) -> None:
    head = HEADS[name]()
    projection = head.project(torch.randn(3, 3, dtype=FLOAT64)).detach()
    x = torch.tensor([15.0, 25.0, torch.nan], dtype=FLOAT64)
    with torch.no_grad():
        for level in (head.prepare_score(0.5), lambda c, v: head.prepare_score_and_derivative(0.5)(c, v)[0]):
            torch.testing.assert_close(level(projection, x)[:2], level(projection[:2], x[:2]))


@pytest.mark.parametrize("name", HEADS)
def test_projections_broadcast_over_values(name: str) -> None:
    head = HEADS[name]()
    context, x = torch.randn(5, 3, dtype=FLOAT64), torch.randn(5, 7, dtype=FLOAT64)
    s, ds = head.projected_score_and_derivative(head.project(context).unsqueeze(1), x, 0.4)
    each = head.score_and_derivative(context[:, None, :].expand(5, 7, 3), x, torch.full((5, 7), 0.4, dtype=FLOAT64))
    assert s.shape == ds.shape == (5, 7)
    torch.testing.assert_close((s, ds), each, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        head.projected_score(head.project(context).unsqueeze(1), x, 0.4), s, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", HEADS)
def test_gradient_reaches_every_parameter(name: str) -> None:
    head = HEADS[name]()
    s, ds = head.score_and_derivative(torch.randn(30, 3, dtype=FLOAT64), torch.randn(30, dtype=FLOAT64), 0.3)
    (s.square().sum() + (torch.rand_like(ds) * ds).sum()).backward()
    for parameter_name, parameter in head.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert bool((parameter.grad != 0.0).any()), parameter_name
        assert bool(parameter.grad.isfinite().all()), parameter_name


@pytest.mark.parametrize("name", HEADS)
def test_config_rebuilds_the_head(name: str) -> None:
    head = HEADS[name]()
    copy = type(head)(**head.config()).double()
    copy.load_state_dict(head.state_dict())
    context, x = torch.randn(9, 3, dtype=FLOAT64), torch.randn(9, dtype=FLOAT64)
    expected, result = (h.score_and_derivative(context, x, 0.2) for h in (head, copy))
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)  # frequencies are rebuilt in single precision


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (ScoreHead, {"context_features": 0}, "context_features=0"),
        (ScoreHead, {"hidden_features": ()}, "hidden_features"),
        (ScoreHead, {"hidden_features": (8, 0)}, "hidden_features"),
        (ScoreHead, {"sinusoids": -1}, "sinusoids=-1"),
        (ScoreHead, {"hidden_features": (8, 4), "residual": True}, "hidden_features"),
        (ScoreHead, {"data_std": 0.0}, "data_std=0.0"),
        (ScoreHead, {"data_std": math.nan}, "data_std=nan"),
        (ScoreHead, {"max_frequency": -1.0}, "max_frequency: expected a positive, finite number, got -1.0"),
        (ScoreHead, {"max_frequency": math.inf}, "max_frequency: expected a positive, finite number, got inf"),
        (ScoreHead, {"data_std": math.inf}, "data_std"),
        (LogisticMixtureHead, {"components": 0}, "components"),
    ],
)
def test_invalid_arguments_are_rejected_by_name(kind: type[Head], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        kind(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sigma_kind", SIGMAS)
@pytest.mark.parametrize("kind", NORMALISED_HEADS)
def test_score_is_the_derivative_of_the_log_density(kind: str, sigma_kind: float | str | None) -> None:
    head = NORMALISED_HEADS[kind]()
    x = (3.0 * torch.randn(60, dtype=FLOAT64)).requires_grad_()
    context, sigma = torch.randn(60, 3, dtype=FLOAT64), noise_level(sigma_kind, (60,))
    s, _ = head.score_and_derivative(context, x, sigma)
    torch.testing.assert_close(s, differentiate(head.log_prob(context, x, sigma), x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma_kind", SIGMAS)
@pytest.mark.parametrize("kind", NORMALISED_HEADS)
def test_density_is_the_derivative_of_the_cdf(kind: str, sigma_kind: float | str | None) -> None:
    head = NORMALISED_HEADS[kind]()
    x = (3.0 * torch.randn(60, dtype=FLOAT64)).requires_grad_()
    context, sigma = torch.randn(60, 3, dtype=FLOAT64), noise_level(sigma_kind, (60,))
    slope = differentiate(head.cdf(context, x, sigma), x)
    torch.testing.assert_close(slope, head.log_prob(context, x, sigma).exp(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("sigma", [None, 0.3])
@pytest.mark.parametrize("kind", NORMALISED_HEADS)
def test_bracket_contains_all_mass(kind: str, sigma: float | None) -> None:
    head = NORMALISED_HEADS[kind]()
    projection = head.project(5.0 * torch.randn(40, 3, dtype=FLOAT64)).detach()
    low, high = head.bracket(projection, sigma)
    assert float(head.projected_cdf(projection, low, sigma).max()) < 1e-9
    assert float(head.projected_cdf(projection, high, sigma).min()) > 1.0 - 1e-9


@pytest.mark.parametrize("sigma", [None, 0.3])
@pytest.mark.parametrize("kind", NORMALISED_HEADS)
def test_density_integrates_to_one(kind: str, sigma: float | None) -> None:
    head = NORMALISED_HEADS[kind]()
    projection = head.project(torch.randn(20, 3, dtype=FLOAT64)).detach()
    low, high = head.bracket(projection, sigma)
    grid = torch.linspace(0.0, 1.0, 20_001, dtype=FLOAT64)[:, None] * (high - low) + low
    density = head.projected_log_prob(projection, grid, sigma).exp()
    torch.testing.assert_close(torch.trapezoid(density, grid, dim=0), torch.ones(20, dtype=FLOAT64), rtol=0, atol=1e-6)
