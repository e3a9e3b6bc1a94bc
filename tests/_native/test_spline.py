"""Splines in C: the numbers of torch in double precision, for any number of points and any shape of the network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from arcsm import SplineHead
from arcsm._native import SplineLimits, spline_project, spline_values


def strong(bins: int, hidden: tuple[int, ...], located: bool = False) -> SplineHead:
    """Return a head in single precision with splines far from straight."""
    torch.manual_seed(bins)
    head = SplineHead(7, bins, 4.0, hidden, located)
    with torch.no_grad():
        head.parameters_of.weight.normal_(std=0.5)
    return head


def points(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    x = 3.0 * torch.randn(count, generator=generator)
    x[::5] *= 30.0  # in the tails
    return torch.randn(count, 7, generator=generator), x


@pytest.mark.parametrize("located", [False, True])
@pytest.mark.parametrize("hidden", [(), (16, 16, 9)])
@pytest.mark.parametrize("bins", [2, 9])
@pytest.mark.parametrize("count", [0, 1, 131])
def test_density_and_distribution_function_are_those_of_torch(
    count: int, bins: int, hidden: tuple[int, ...], located: bool
) -> None:
    head, (context, x) = strong(bins, hidden, located), points(count)
    with torch.no_grad():
        projection = head.project(context)
        found = head.projected_log_prob(projection, x), head.projected_cdf(projection, x)
        head = head.double()
        exact = head.project(context.double())
        expected = head.projected_log_prob(exact, x.double()), head.projected_cdf(exact, x.double())
    torch.testing.assert_close(projection.double(), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(found[1].double(), expected[1], rtol=0.0, atol=1e-3)


def test_quantiles_are_inverse_to_values() -> None:
    head, (context, x) = strong(16, (16, 16)), points(200)
    with torch.no_grad():
        projection = head.project(context)
        z = x.clamp(-8.0, 8.0)
        value, log_slope = spline_values(16, 4.0, projection, z)
        back, _ = spline_values(16, 4.0, projection, value, True)
    precision = 1e-5 * (1.0 + value.abs()) * torch.exp(-log_slope)  # rounding of the value, on the scale of z
    assert bool(((back - z).abs() < precision + 1e-4).all())


def test_shapes_that_do_not_match_are_errors() -> None:
    limits = SplineLimits(4, 3.0, 1e-3, 1e-3, 0.5, 1e-3, 1e3)
    layers = [(torch.zeros(15, 3), torch.zeros(15))]
    spline_project(limits, layers, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="spline_project: shapes"):
        spline_project(limits, layers, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="spline_values: shapes"):
        spline_values(4, 3.0, torch.zeros(2, 13), torch.zeros(3))
    with pytest.raises(TypeError, match="float32"):
        spline_values(4, 3.0, torch.zeros(2, 13, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
