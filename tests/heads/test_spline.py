"""The spline head: closed forms that agree with one another, Gaussian tails, and what likelihood teaches it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, NoiseLadder, SplineHead
from small_heads import FLOAT64, differentiate


def random_spline(bins: int = 6, bound: float = 3.0) -> tuple[SplineHead, Tensor]:
    """Return a head in double precision, and projections ``(4, 1, P)`` with strong splines."""
    torch.manual_seed(0)
    head = SplineHead(3, bins, bound).double()
    with torch.no_grad():
        head.parameters_of.weight.normal_()
    return head, head.project(torch.randn(4, 1, 3, dtype=FLOAT64)).detach()


def test_density_distribution_function_and_quantiles_agree() -> None:
    head, projection = random_spline()
    low, high = head.bracket(projection)
    x = (low + (high - low) * torch.linspace(0.0, 1.0, 4_001, dtype=FLOAT64)).requires_grad_()
    cdf = head.projected_cdf(projection, x)
    density = head.projected_log_prob(projection, x).exp()
    torch.testing.assert_close(differentiate(cdf, x), density, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(torch.trapezoid(density, x).detach(), torch.ones(4, dtype=FLOAT64), atol=1e-3, rtol=0.0)
    inner = ((cdf > 1e-8) & (cdf < 1.0 - 1e-8)).detach()
    back = head.projected_icdf(projection, cdf.detach())
    torch.testing.assert_close(back[inner], x[inner].detach(), atol=1e-7, rtol=1e-7)


def test_score_and_derivative_are_those_of_the_density_within_the_bins() -> None:
    head, projection = random_spline()
    x = torch.linspace(-6.0, 6.0, 997, dtype=FLOAT64).expand(4, -1).clone().requires_grad_()
    log_prob = head.projected_log_prob(projection, x)
    [score] = torch.autograd.grad(log_prob.sum(), x, create_graph=True)
    ours, slope = head.projected_score_and_derivative(projection, x)
    torch.testing.assert_close(ours, score)
    torch.testing.assert_close(slope, differentiate(score, x))


def test_a_straight_spline_is_a_gaussian() -> None:
    head = SplineHead(2).double()
    with torch.no_grad():
        head.parameters_of.weight.zero_()
        head.parameters_of.bias[:2] = torch.tensor([0.5, math.log(0.3)])
    x = torch.linspace(-4.0, 4.0, 101, dtype=FLOAT64)
    projection = head.project(torch.zeros(101, 2, dtype=FLOAT64))
    normal = torch.distributions.Normal(0.5, projection[0, 1].exp())
    torch.testing.assert_close(head.projected_log_prob(projection, x), normal.log_prob(x))
    torch.testing.assert_close(head.projected_cdf(projection, x), normal.cdf(x))


def test_tails_are_gaussian_and_far_values_have_finite_densities() -> None:
    head, projection = random_spline()
    head, projection = head.float(), projection.float()
    location, scale = projection[..., 0], projection[..., 1].exp()
    slopes = projection[:, 0, [-head.bins - 1, -head.bins - 1, -1, -1]]
    z, end = torch.tensor([-30.0, -3.1, 3.1, 30.0]), torch.tensor([-3.0, -3.0, 3.0, 3.0])
    g = end + slopes * (z - end)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(g) + torch.log(slopes / scale)
    torch.testing.assert_close(
        head.projected_log_prob(projection, location + z * scale), expected, rtol=1e-4, atol=1e-4
    )
    far = torch.tensor([-1e8, 1e8])
    assert bool(head.projected_log_prob(projection, far).isfinite().all())
    u = torch.tensor([1e-30, 1e-7, 0.5, 1.0 - 6e-8])
    assert bool(head.projected_icdf(projection, u).diff().gt(0.0).all())


def test_a_located_spline_is_that_of_its_units_moved_and_stretched() -> None:
    torch.manual_seed(0)
    head = SplineHead(5, 6, 3.0, hidden_features=(8, 8), located=True).double()
    inner, units = torch.randn(7, 3, dtype=FLOAT64), torch.randn(7, 2, dtype=FLOAT64)
    plain = torch.cat([inner, torch.zeros(7, 2, dtype=FLOAT64)], 1)
    x = torch.randn(7, dtype=FLOAT64)
    moved = head.log_prob(torch.cat([inner, units], 1), units[:, 0] + units[:, 1].exp() * x)
    torch.testing.assert_close(moved, head.log_prob(plain, x) - units[:, 1])


def test_a_small_scale_keeps_the_digits_of_a_location() -> None:
    torch.manual_seed(0)
    head = SplineHead(5, 6, 3.0, hidden_features=(8, 8), located=True).double()
    units = torch.tensor([[0.9, math.log(1e-4)]], dtype=FLOAT64).expand(9, 2)
    context = torch.cat([torch.randn(9, 3, dtype=FLOAT64), units], 1)
    x = 0.9 + 1e-4 * torch.randn(9, dtype=FLOAT64)
    with torch.no_grad():
        found = head.projected_log_prob(head.in_single_precision(context), x)
        torch.testing.assert_close(found, head.log_prob(context, x), atol=1e-4, rtol=1e-4)


def test_a_located_spline_needs_a_context_that_gives_locations() -> None:
    with pytest.raises(ValueError, match="SplineHead: the context gives no locations"):
        AutoregressiveModel(MADE(2, 4), SplineHead(4, located=True))


def test_noise_levels_are_an_error() -> None:
    model = AutoregressiveModel(MADE(2, 4), SplineHead(4), NoiseLadder(1.0, 0.1, 3))
    with pytest.raises(ValueError, match="SplineHead: has no noise levels"):
        model.log_prob(torch.zeros(3, 2))


def test_gradients_are_finite_at_knots_and_ends_and_missing_values_stay_missing() -> None:
    head, _ = random_spline()
    projection = head.project(torch.randn(4, 1, 3, dtype=FLOAT64))
    knots = projection[..., 2 : 2 + head.bins - 1].detach()
    z = torch.cat([knots, torch.full_like(knots[..., :1], head.bound), -torch.full_like(knots[..., :1], 3.0)], -1)
    x = projection[..., :1].detach() + z * projection[..., 1:2].exp().detach()
    loss = head.projected_log_prob(projection, x[:, 0]).sum()
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in head.parameters() if p.grad is not None)
    nan = torch.full((1,), math.nan, dtype=FLOAT64)
    values = *head.projected_score_and_derivative(projection[0], nan), head.projected_log_prob(projection[0], nan)
    assert all(bool(value.isnan().all()) for value in values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bins": 1}, "bins=1"),
        ({"bound": 0.0}, "bound: expected"),
        ({"context_features": 2, "located": True}, "context_features=2"),
    ],
)
def test_impossible_sizes_are_errors(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplineHead(**arguments)  # type: ignore[arg-type]
