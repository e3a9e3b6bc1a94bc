"""Piecewise densities: CDFs, quantiles, moments and tails against closed forms."""

import pytest
import torch
from torch import Tensor

from arcsm.conditionals.quadrature import PiecewiseDensity, from_nodes, integrate
from mixtures import FLOAT64, Mixtures, gaussians, grid, random_mixtures, uniform


def typical(logistic: bool = False) -> tuple[Mixtures, PiecewiseDensity]:
    """Return some mixtures and their integrated densities."""
    mixtures = random_mixtures(20, 3, logistic)
    return mixtures, integrate(mixtures.score, grid(17).expand(20, -1), tol=1e-7, max_evaluations=1024)


def test_the_density_between_nodes_matches_the_mixture() -> None:
    for logistic in (False, True):
        mixtures, density = typical(logistic)
        x = mixtures.moments()[0][:, None] + grid(201, 3.0)
        torch.testing.assert_close(density.log_prob(x).exp(), mixtures.log_prob(x).exp(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(density.cdf(x), mixtures.cdf(x), rtol=0.0, atol=1e-6)


def test_cdf_is_monotone_from_zero_to_one() -> None:
    _, density = typical(logistic=True)
    cdf = density.cdf(grid(401, 60.0).expand(20, -1))
    assert float(cdf.diff(dim=1).min()) >= -1e-14
    assert float(cdf[:, 0].max()) < 1e-12
    assert float(cdf[:, -1].min()) > 1.0 - 1e-12


@pytest.mark.parametrize("logistic", [False, True])
def test_cdf_inverts_icdf(logistic: bool) -> None:
    _, density = typical(logistic)
    u = torch.cat([uniform(20, 200), torch.tensor([1e-12, 1e-6, 0.5, 1.0 - 1e-6]).double().expand(20, -1)], 1)
    x = density.icdf(u)
    torch.testing.assert_close(density.cdf(x), u, rtol=0.0, atol=1e-8)
    order = u.argsort(1)
    assert bool((x.gather(1, order).diff(dim=1) >= 0.0).all())


@pytest.mark.parametrize("logistic", [False, True])
def test_moments(logistic: bool) -> None:
    mixtures, density = typical(logistic)
    torch.testing.assert_close(density.mean_and_variance(), mixtures.moments(), rtol=1e-5, atol=1e-5)


def test_gaussian_tails_are_exact_wherever_the_nodes_end() -> None:
    mean = torch.tensor([0.3, -0.5, 0.0]).double()
    truth = gaussians(mean, torch.ones_like(mean))
    density = integrate(truth.score, torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]).double().expand(3, -1))
    x = grid(161, 8.0).expand(3, -1)
    torch.testing.assert_close(density.log_prob(x), truth.log_prob(x), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(density.cdf(x), truth.cdf(x), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(density.tails[:, 0] / density.log_mass.exp(), truth.cdf(x[:, :1] * 0 - 1)[:, 0])
    u = torch.tensor([1e-10, 1e-3, 0.1, 0.5, 0.9, 0.999]).double().expand(3, -1)
    torch.testing.assert_close(density.icdf(u), mean[:, None] + torch.special.ndtri(u), rtol=0.0, atol=1e-5)


def tails_from(s: list[float], ds: list[float]) -> PiecewiseDensity:
    x = torch.tensor([[-1.0, 1.0]], dtype=FLOAT64)
    return from_nodes(x, torch.tensor([s], dtype=FLOAT64), torch.tensor([ds], dtype=FLOAT64))


@pytest.mark.parametrize(
    ("slope", "curvature"),
    [(2.0, 0.0), (2.0, -1.0), (-0.5, -1.0), (2.0, 0.1)],
)
def test_tails_agree_with_the_density_and_the_distribution_beyond_the_nodes(slope: float, curvature: float) -> None:
    density = tails_from([slope, -slope], [curvature, curvature])
    x = torch.linspace(1.0, 31.0, 60_001, dtype=FLOAT64)[None]
    beyond = density.log_prob(x).exp()
    share = density.tails[:, 1] / density.log_mass.exp()
    torch.testing.assert_close(torch.trapezoid(beyond, x), share, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(1.0 - density.cdf(x[:, :1] + 1e-12), share[:, None], rtol=1e-6, atol=0.0)
    part = torch.trapezoid(beyond[:, 2_000:], x[:, 2_000:])[:, None]
    torch.testing.assert_close(1.0 - density.cdf(x[:, 2_000:2_001]), part, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(density.cdf(-x), 1.0 - density.cdf(x), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(("slope", "curvature"), [(2.0, 0.0), (-0.5, -1.0)])
def test_icdf_inverts_the_cdf_in_the_tails(slope: float, curvature: float) -> None:
    density = tails_from([slope, -slope], [curvature, curvature])
    share = float(density.tails[0, 0] / density.log_mass.exp())
    u = share * torch.tensor([[1e-6, 0.01, 0.5, 0.99]], dtype=FLOAT64)
    x = density.icdf(u)
    assert float(x.max()) < -1.0
    torch.testing.assert_close(density.cdf(x), u, rtol=1e-8, atol=0.0)
    torch.testing.assert_close(density.icdf(1.0 - u), -x, rtol=1e-6, atol=0.0)


def test_a_score_of_degree_five_is_integrated_exactly_on_uneven_nodes() -> None:
    x = torch.tensor([[-2.0, -1.1, -0.9, 0.3, 1.4, 1.6, 2.5]], dtype=FLOAT64)
    density = from_nodes(x, -(x**5) - x, -5.0 * x**4 - 1.0)
    expected = -(x**6) / 6.0 - x**2 / 2.0
    inner = slice(1, -1)  # outer cells have only one neighbour
    step = density.energy[:, inner].diff() - expected[:, inner].diff()
    torch.testing.assert_close(step, torch.zeros_like(step), atol=1e-12, rtol=0.0)


@pytest.mark.parametrize(("deviation", "tolerance"), [(0.02, 1e-6), (2.0, 1e-3)])
def test_the_error_of_a_quantile_is_the_square_of_its_tolerance(deviation: float, tolerance: float) -> None:
    def score(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:  # two modes with steep cells between and outside
        far = 6.0 * deviation
        weight = torch.sigmoid(-2.0 * x * far / deviation**2)
        slope = -2.0 * far / deviation**2 * weight * (1.0 - weight)
        return -(x - far + 2.0 * far * weight) / deviation**2, -(1.0 + 2.0 * far * slope) / deviation**2

    nodes = torch.linspace(-40.0, 40.0, 25, dtype=torch.float64)
    density = integrate(score, nodes, tol=1e-8, max_evaluations=4096)
    u = torch.cat([torch.tensor([1e-7, 1e-4]), torch.linspace(0.01, 0.99, 99), torch.tensor([1.0 - 1e-4, 1.0 - 1e-7])])
    u = u.double()[None]
    error = (density.cdf(density.icdf(u, tolerance=tolerance)) - u).abs()
    assert bool(density.converged.all())
    assert error.max().item() < 10.0 * tolerance**2 + 1e-11
