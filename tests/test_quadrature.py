"""Integration from scores: normalisers, distribution functions, quantiles and moments against closed forms."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import softplus

from arcsm.conditionals import piecewise, quadrature
from arcsm.conditionals.quadrature import PiecewiseDensity, ScoreFunction, from_nodes, integrate

FLOAT64 = torch.float64
LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(shape, dtype=FLOAT64)


def log_uniform(*shape: int, low: float, high: float) -> Tensor:
    return low * (high / low) ** torch.rand(shape, dtype=FLOAT64)


@dataclass
class Mixtures:
    """``N`` mixtures of Gaussians or logistics, ``(N, J)`` each, with everything in closed form."""

    weights: Tensor
    means: Tensor
    scales: Tensor
    logistic: bool = False

    def rows(self, index: Tensor) -> "Mixtures":
        return Mixtures(self.weights[index], self.means[index], self.scales[index], self.logistic)

    def _log_terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = (x.unsqueeze(-1) - self.means.unsqueeze(1)) / self.scales.unsqueeze(1)  # (N, K, J)
        shape = -z.abs() - 2.0 * softplus(-z.abs()) if self.logistic else -0.5 * z.square() - LOG_SQRT_2PI
        return shape + (self.weights / self.scales).log().unsqueeze(1), z

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.logsumexp(self._log_terms(x)[0], -1)

    def cdf(self, x: Tensor) -> Tensor:
        z = self._log_terms(x)[1]
        return (self.weights.unsqueeze(1) * (torch.sigmoid(z) if self.logistic else torch.special.ndtr(z))).sum(-1)

    def moments(self) -> tuple[Tensor, Tensor]:
        mean = (self.weights * self.means).sum(-1)
        spread = self.scales.square() * (math.pi**2 / 3.0 if self.logistic else 1.0)
        return mean, (self.weights * (spread + self.means.square())).sum(-1) - mean.square()

    def score(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        own = self.rows(rows)
        log_terms, z = own._log_terms(x)
        posterior, scales = torch.softmax(log_terms, -1), own.scales.unsqueeze(1)
        if self.logistic:
            slopes = -torch.tanh(0.5 * z) / scales
            curvatures = -2.0 * torch.sigmoid(z) * torch.sigmoid(-z) / scales.square()
        else:
            slopes, curvatures = -z / scales, -1.0 / scales.square()
        s = (posterior * slopes).sum(-1)
        return s, (posterior * (curvatures + (slopes - s.unsqueeze(-1)).square())).sum(-1)

    def mode(self) -> Tensor:
        """The mean with the largest density, ``(N, 1)``: the point that errors without an anchor refer to."""
        return self.means.gather(1, self.log_prob(self.means).argmax(1, keepdim=True))


def gaussians(mean: Tensor, sd: Tensor) -> Mixtures:
    return Mixtures(torch.ones_like(mean)[:, None], mean[:, None], sd[:, None])


def random_mixtures(n: int, components: int, logistic: bool) -> Mixtures:
    """Neighbours up to 8 scales apart, within [-20, 20]."""
    scales = log_uniform(n, components, low=0.15, high=0.6)
    gaps = uniform(n, components, high=8.0) * scales
    gaps[:, 0] = uniform(n, low=-8.0, high=8.0)
    weights = uniform(n, components, low=0.05, high=1.0)
    return Mixtures(weights / weights.sum(1, keepdim=True), gaps.cumsum(1), scales, logistic)


def grid(nodes: int, half_width: float = 20.0) -> Tensor:
    return torch.linspace(-half_width, half_width, nodes, dtype=FLOAT64)


def typical(logistic: bool = False) -> tuple[Mixtures, PiecewiseDensity]:
    """A handful of well integrated mixtures."""
    mixtures = random_mixtures(20, 3, logistic)
    return mixtures, integrate(mixtures.score, grid(17).expand(20, -1), tol=1e-7, max_evaluations=1024)


# Accuracy -------------------------------------------------------------------------------------------------------


def test_gaussians_anywhere_on_a_support_of_400_sd_take_64_evaluations() -> None:
    sd = log_uniform(500, low=0.02, high=2.0)
    support = 200.0 * sd
    mean = uniform(500, low=-1.0, high=1.0) * support
    nodes = support[:, None] * torch.linspace(-1.0, 1.0, 17, dtype=FLOAT64)
    density = integrate(gaussians(mean, sd).score, nodes, max_evaluations=64)
    at_mode = density.log_prob(mean[:, None])[:, 0] + sd.log() + LOG_SQRT_2PI
    assert float(at_mode.abs().max()) <= 1e-4
    assert bool(density.converged.all())
    assert int(density.evaluations.max()) <= 64


@pytest.mark.parametrize("logistic", [False, True])
@pytest.mark.parametrize("components", [1, 2, 3])
def test_mixtures_up_to_8_scales_apart_take_128_evaluations(components: int, logistic: bool) -> None:
    mixtures = random_mixtures(400, components, logistic)
    density = integrate(mixtures.score, grid(17).expand(400, -1), max_evaluations=128)
    mode = mixtures.mode()
    assert float((density.log_prob(mode) - mixtures.log_prob(mode)).abs().max()) <= 1e-4
    assert int(density.evaluations.max()) <= 128


@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_eight_modes_40_scales_apart_take_1024_evaluations(scale: float) -> None:
    weights = uniform(50, 8, low=0.05, high=1.0)
    means = 40.0 * torch.arange(8, dtype=FLOAT64) - 140.0 + uniform(50, 1, low=-10.0, high=10.0)
    mixtures = Mixtures(weights / weights.sum(1, keepdim=True), scale * means, torch.full_like(weights, scale))
    density = integrate(mixtures.score, scale * grid(33, 400.0).expand(50, -1), max_evaluations=1024)
    mode = mixtures.mode()
    assert float((density.log_prob(mode) - mixtures.log_prob(mode)).abs().max()) <= 1e-4
    assert bool(density.converged.all())


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("max_evaluations", [32, 48, 64, 128, 256])
@pytest.mark.parametrize("logistic", [False, True])
def test_error_is_below_ten_times_its_estimate_or_flagged(logistic: bool, max_evaluations: int, anchored: bool) -> None:
    mixtures = random_mixtures(200, 3, logistic)
    x = mixtures.mode()
    if anchored:
        x = x + 2.0 * uniform(200, 1, low=-1.0, high=1.0)
    density = integrate(
        mixtures.score, grid(17).expand(200, -1), x[:, 0] if anchored else None, max_evaluations=max_evaluations
    )
    error = (density.log_prob(x) - mixtures.log_prob(x))[:, 0].abs()
    assert bool(((error <= 10.0 * density.error + 1e-9) | ~density.converged).all())
    assert bool((density.error[density.converged] <= 1e-5).all())


def test_a_cell_that_looks_flawless_by_its_slopes_is_doubted_for_its_curvature() -> None:
    # s = x (1 - x) rises by the mean of its slopes over [0, 1], by nothing; its second derivative is -2
    s, ds = torch.zeros(1, 2, dtype=FLOAT64), torch.tensor([[1.0, -1.0]], dtype=FLOAT64)
    width = torch.ones(1, 1, dtype=FLOAT64)
    for dds, off in ((-2.0, 0.0), (0.0, 2.0 / 60.0)):
        doubt = quadrature._step_doubt(width, s, ds, torch.full_like(s, dds), caution=1.0)
        assert doubt.item() == pytest.approx(quadrature._LIKELY * off, abs=1e-15)


def test_what_is_not_understood_may_be_as_wrong_as_it_looks() -> None:
    s, ds = torch.tensor([[3.0, -3.0]], dtype=FLOAT64), torch.zeros(1, 2, dtype=FLOAT64)  # a switch between modes
    width = torch.ones(1, 1, dtype=FLOAT64)
    likely, possible = (
        quadrature._step_doubt(width, s, ds, torch.zeros_like(s), caution).item()
        for caution in (quadrature._LIKELY, 1.0)
    )
    assert possible == pytest.approx(0.3 * 6.0)
    assert likely == pytest.approx(quadrature._LIKELY * possible)


def test_a_smaller_tolerance_costs_more_and_gives_more() -> None:
    mixtures = random_mixtures(50, 2, False)
    mode = mixtures.mode()
    errors, costs = [], []
    for tol in (1e-2, 1e-4, 1e-6, 1e-8):
        density = integrate(mixtures.score, grid(17).expand(50, -1), tol=tol, max_evaluations=1024)
        assert bool(density.converged.all())
        errors.append(float((density.log_prob(mode) - mixtures.log_prob(mode)).abs().max()))
        costs.append(float(density.evaluations.double().mean()))
        assert errors[-1] <= 10.0 * tol
    assert costs == sorted(costs)
    assert errors[-1] < 1e-3 * errors[0]


def test_evaluations_are_counted_and_limited() -> None:
    mixtures, spent = random_mixtures(30, 3, False), torch.zeros(30, dtype=torch.long)

    def counted(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        spent.index_add_(0, rows, torch.full_like(rows, x.shape[1]))
        return mixtures.score(x, rows)

    density = integrate(counted, grid(17).expand(30, -1), max_evaluations=70)
    assert torch.equal(density.evaluations, spent)
    assert int(spent.max()) <= 70


def test_the_density_between_nodes_is_that_of_the_mixture() -> None:
    for logistic in (False, True):
        mixtures, density = typical(logistic)
        x = mixtures.moments()[0][:, None] + grid(201, 3.0)
        torch.testing.assert_close(density.log_prob(x).exp(), mixtures.log_prob(x).exp(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(density.cdf(x), mixtures.cdf(x), rtol=0.0, atol=1e-6)


def test_density_integrates_to_one_even_before_convergence() -> None:
    mixtures = random_mixtures(20, 3, False)
    density = integrate(mixtures.score, grid(17).expand(20, -1), max_evaluations=40)
    assert not bool(density.converged.any())
    x = torch.linspace(-25.0, 25.0, 100_001, dtype=FLOAT64).expand(20, -1)
    mass = torch.trapezoid(density.log_prob(x).exp(), x)
    torch.testing.assert_close(mass, torch.ones(20, dtype=FLOAT64), rtol=0.0, atol=0.02)


# Distribution function, quantiles, moments ----------------------------------------------------------------------


@pytest.mark.parametrize("logistic", [False, True])
def test_cdf_is_monotone_from_zero_to_one(logistic: bool) -> None:
    _, density = typical(logistic)
    cdf = density.cdf(grid(4001, 60.0).expand(20, -1))
    assert float(cdf.diff(dim=1).min()) >= -1e-14
    assert float(cdf[:, 0].max()) < 1e-12
    assert float(cdf[:, -1].min()) > 1.0 - 1e-12


@pytest.mark.parametrize("logistic", [False, True])
def test_cdf_undoes_quantile(logistic: bool) -> None:
    _, density = typical(logistic)
    u = torch.cat([uniform(20, 200), torch.tensor([1e-12, 1e-6, 0.5, 1.0 - 1e-6]).double().expand(20, -1)], 1)
    x = density.quantile(u)
    torch.testing.assert_close(density.cdf(x), u, rtol=0.0, atol=1e-8)
    order = u.argsort(1)
    assert bool((x.gather(1, order).diff(dim=1) >= 0.0).all())


def test_quantiles_of_a_gaussian() -> None:
    mean, sd = torch.tensor([3.0, -7.0]).double(), torch.tensor([0.1, 2.0]).double()
    density = integrate(gaussians(mean, sd).score, grid(17).expand(2, -1))
    u = torch.tensor([1e-6, 0.01, 0.3, 0.5, 0.8, 0.999999], dtype=FLOAT64).expand(2, -1)
    expected = mean[:, None] + sd[:, None] * torch.special.ndtri(u)
    torch.testing.assert_close(density.quantile(u), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("logistic", [False, True])
def test_moments(logistic: bool) -> None:
    mixtures, density = typical(logistic)
    torch.testing.assert_close(density.mean_and_variance(), mixtures.moments(), rtol=1e-5, atol=1e-5)


# Beyond the outer nodes -----------------------------------------------------------------------------------------


def test_gaussian_tails_are_exact_wherever_the_nodes_end() -> None:
    mean = torch.tensor([0.3, -0.5, 0.0]).double()
    truth = gaussians(mean, torch.ones_like(mean))
    density = integrate(truth.score, torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]).double().expand(3, -1))
    x = grid(161, 8.0).expand(3, -1)
    torch.testing.assert_close(density.log_prob(x), truth.log_prob(x), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(density.cdf(x), truth.cdf(x), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(density.tails[:, 0] / density.log_mass.exp(), truth.cdf(x[:, :1] * 0 - 1)[:, 0])
    u = torch.tensor([1e-10, 1e-3, 0.1, 0.5, 0.9, 0.999]).double().expand(3, -1)
    torch.testing.assert_close(density.quantile(u), mean[:, None] + torch.special.ndtri(u), rtol=0.0, atol=1e-5)


def tails_from(s: list[float], ds: list[float]) -> PiecewiseDensity:
    x = torch.tensor([[-1.0, 1.0]], dtype=FLOAT64)
    return from_nodes(x, torch.tensor([s], dtype=FLOAT64), torch.tensor([ds], dtype=FLOAT64))


@pytest.mark.parametrize(
    ("slope", "curvature"),
    [
        (2.0, 0.0),
        (0.5, 0.0),
        (2.0, -1.0),
        (-0.5, -1.0),
        (2.0, 0.1),
    ],
)
def test_tails_agree_with_the_density_and_the_distribution_beyond_the_nodes(slope: float, curvature: float) -> None:
    density = tails_from([slope, -slope], [curvature, curvature])
    x = torch.linspace(1.0, 61.0, 600_001, dtype=FLOAT64)[None]
    beyond = density.log_prob(x).exp()
    share = density.tails[:, 1] / density.log_mass.exp()
    torch.testing.assert_close(torch.trapezoid(beyond, x), share, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(1.0 - density.cdf(x[:, :1] + 1e-12), share[:, None], rtol=1e-6, atol=0.0)
    part = torch.trapezoid(beyond[:, 10_000:], x[:, 10_000:])[:, None]
    torch.testing.assert_close(1.0 - density.cdf(x[:, 10_000:10_001]), part, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(density.cdf(-x), 1.0 - density.cdf(x), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(("slope", "curvature"), [(2.0, 0.0), (2.0, -1.0), (-0.5, -1.0)])
def test_quantiles_in_the_tails_undo_the_distribution(slope: float, curvature: float) -> None:
    density = tails_from([slope, -slope], [curvature, curvature])
    share = float(density.tails[0, 0] / density.log_mass.exp())
    u = share * torch.tensor([[1e-6, 0.01, 0.5, 0.99]], dtype=FLOAT64)
    x = density.quantile(u)
    assert float(x.max()) < -1.0
    torch.testing.assert_close(density.cdf(x), u, rtol=1e-8, atol=0.0)
    torch.testing.assert_close(density.quantile(1.0 - u), -x, rtol=1e-6, atol=0.0)


def test_a_tail_that_rises_is_flagged_not_normalised() -> None:
    rising = integrate(
        lambda x, _: (torch.ones_like(x), torch.zeros_like(x)), grid(9).expand(2, -1), max_evaluations=64
    )
    assert not bool(rising.converged.any())
    assert bool((rising.log_mass == math.inf).all())


def test_a_score_that_is_not_a_number_is_flagged() -> None:
    broken = integrate(lambda x, _: (x * math.nan, x * math.nan), grid(9).expand(2, -1), max_evaluations=64)
    assert not bool(broken.converged.any())


def test_anchors_far_outside_are_finite_and_fall_with_distance() -> None:
    truth = gaussians(torch.zeros(41).double(), torch.full((41,), 0.5).double())
    anchor = torch.linspace(-30.0, 30.0, 41, dtype=FLOAT64)  # up to 60 sd, the nodes end at 16
    density = integrate(truth.score, grid(9, 8.0).expand(41, -1), anchor)
    log_prob = density.log_prob(anchor[:, None])[:, 0]
    torch.testing.assert_close(log_prob, truth.log_prob(anchor[:, None])[:, 0], rtol=1e-9, atol=1e-5)
    assert bool((log_prob[:21].diff() > 0.0).all())
    assert bool((log_prob[20:].diff() < 0.0).all())


@pytest.mark.parametrize("logistic", [False, True])
def test_density_20_sd_outside_falls_without_an_anchor(logistic: bool) -> None:
    mixtures, density = typical(logistic)
    mean, variance = mixtures.moments()
    distance = torch.linspace(6.0, 60.0, 50, dtype=FLOAT64) * variance.sqrt()[:, None]
    for side in (-1.0, 1.0):
        log_prob = density.log_prob(mean[:, None] + side * distance)
        assert bool(log_prob.isfinite().all())
        assert bool((log_prob.diff(dim=1) < 0.0).all())


# Batches --------------------------------------------------------------------------------------------------------


def test_result_does_not_depend_on_the_rows_beside() -> None:
    mixtures = random_mixtures(40, 3, True)
    anchor = mixtures.moments()[0]
    nodes = grid(17).expand(40, -1)
    x, u = mixtures.means, uniform(40, 3)

    def answers(index: Tensor) -> list[Tensor]:
        own = mixtures.rows(index)
        density = integrate(own.score, nodes[index], anchor[index])
        found = [density.log_prob(x[index]), density.cdf(x[index]), density.quantile(u[index])]
        return [*found, *density.mean_and_variance(), density.error, density.evaluations, density.converged]

    whole = answers(torch.arange(40))
    shuffled = torch.randperm(40)
    for got, wanted in zip(answers(shuffled), whole, strict=True):
        torch.testing.assert_close(got, wanted[shuffled], rtol=1e-9, atol=1e-9)
    for row in range(0, 40, 7):
        for got, wanted in zip(answers(torch.tensor([row])), whole, strict=True):
            torch.testing.assert_close(got, wanted[row : row + 1], rtol=1e-9, atol=1e-9)


def test_no_rows_give_no_densities() -> None:
    density = integrate(lambda x, _: (-x, -torch.ones_like(x)), torch.zeros(0, 5, dtype=FLOAT64))
    assert density.log_mass.shape == (0,)
    assert density.log_prob(torch.zeros(0, 3, dtype=FLOAT64)).shape == (0, 3)


def test_an_anchor_on_a_node_changes_nothing() -> None:
    truth = gaussians(torch.tensor([0.7]).double(), torch.tensor([0.4]).double())
    density = integrate(truth.score, grid(17).expand(1, -1), torch.zeros(1, dtype=FLOAT64))
    x = grid(101, 2.0)[None]
    torch.testing.assert_close(density.log_prob(x), truth.log_prob(x), rtol=0.0, atol=1e-5)
    u = uniform(1, 50)
    torch.testing.assert_close(density.cdf(density.quantile(u)), u, rtol=0.0, atol=1e-8)


def test_the_inputs_are_left_alone_and_nothing_records_gradients() -> None:
    nodes, anchor = grid(17).repeat(3, 1), torch.zeros(3, dtype=FLOAT64)
    before = nodes.clone()
    scale = torch.ones((), dtype=FLOAT64, requires_grad=True)
    density = integrate(lambda x, _: (-x * scale, -scale.expand_as(x)), nodes, anchor)
    assert torch.equal(nodes, before)
    assert not density.log_mass.requires_grad


# Differentiation ------------------------------------------------------------------------------------------------


def nodes_and_scores() -> tuple[Tensor, Tensor, Tensor]:
    mixtures = random_mixtures(3, 2, False)
    x = mixtures.moments()[0][:, None] + grid(9, 3.0)
    return x, *mixtures.score(x, torch.arange(3))


def test_log_density_at_the_nodes_is_differentiable_by_score_and_derivative() -> None:
    x, s, ds = nodes_and_scores()

    def at_nodes(s: Tensor, ds: Tensor) -> Tensor:
        density = from_nodes(x, s, ds)
        return density.energy - density.log_mass[:, None]

    assert torch.autograd.gradcheck(at_nodes, (s.requires_grad_(), ds.requires_grad_()))


def test_log_density_and_distribution_between_nodes_are_differentiable() -> None:
    x, s, ds = nodes_and_scores()
    middle = x[:, 2:5] + 0.1

    def between(s: Tensor, ds: Tensor) -> tuple[Tensor, Tensor]:
        density = from_nodes(x, s, ds)
        return density.log_prob(middle), density.cdf(middle)

    assert torch.autograd.gradcheck(between, (s.requires_grad_(), ds.requires_grad_()))


def test_gradient_is_the_log_likelihood_gradient_of_a_gaussian() -> None:
    mean, log_sd = (torch.tensor([value], dtype=FLOAT64, requires_grad=True) for value in (0.4, -0.2))
    x = grid(13, 6.0)[None]
    sd = log_sd.exp()
    density = from_nodes(x, (mean - x) / sd.square(), (-1.0 / sd.square()).expand_as(x))
    value = density.energy[0, 7] - density.log_mass[0]
    gradient = torch.autograd.grad(value, (mean, log_sd))
    z = (x[0, 7] - mean.detach()) / sd.detach()
    torch.testing.assert_close(gradient, (z / sd.detach(), z.square() - 1.0), rtol=1e-6, atol=1e-6)


def test_repeated_nodes_give_finite_gradients_and_no_mass() -> None:
    x, s, ds = nodes_and_scores()
    plain = from_nodes(x, s, ds).log_mass
    x, s, ds = (torch.cat([t, t[:, -1:], t[:, -1:]], 1).requires_grad_() for t in (x, s, ds))
    repeated = from_nodes(x, s, ds)
    torch.testing.assert_close(repeated.log_mass, plain)
    for gradient in torch.autograd.grad(repeated.log_mass.sum(), (s, ds)):
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("tail", [0.0, -1e-14, -300.0, -1e6, 1e-3])
def test_gradients_of_extreme_tails_are_finite(tail: float) -> None:
    x = grid(5, 2.0)[None]
    s, ds = (-3.0 * x).requires_grad_(), torch.full_like(x, tail).requires_grad_()
    for gradient in torch.autograd.grad(from_nodes(x, s, ds).log_mass.sum(), (s, ds)):
        assert bool(gradient.isfinite().all())


# Properties over wide inputs, and mistakes ----------------------------------------------------------------------


@given(st.floats(-100.0, 100.0), st.floats(1e-3, 1e3), st.floats(-50.0, 50.0))
def test_shifting_and_scaling_shift_and_scale_the_density(shift: float, scale: float, mean: float) -> None:
    plain = Mixtures(*(torch.tensor([row]).double() for row in ([0.3, 0.7], [-1.0, 1.5], [0.4, 0.6])))
    moved = Mixtures(plain.weights, shift + scale * plain.means, scale * plain.scales)
    nodes, x = grid(17)[None], grid(21, 3.0)[None]
    first = integrate(plain.score, nodes, tol=1e-6)
    second = integrate(moved.score, shift + scale * nodes, tol=1e-6)
    difference = second.log_prob(shift + scale * x) + math.log(scale) - first.log_prob(x)
    assert float(difference.abs().max()) < 1e-4


def normal(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    return -x, -torch.ones_like(x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda score: integrate(score, torch.zeros(1, 1)), "nodes: expected at least two ascending"),
        (lambda score: integrate(score, torch.tensor([0.0, 0.0, 1.0])), "nodes: expected at least two ascending"),
        (lambda score: integrate(score, torch.tensor([[0.0, 1.0], [1.0, 0.0]])), "nodes"),
        (lambda score: integrate(score, grid(17), max_evaluations=16), "max_evaluations: .* 17 .* got 16"),
        (lambda score: integrate(score, grid(16), torch.zeros(2), max_evaluations=16), "max_evaluations"),
    ],
)
def test_impossible_arguments_are_refused(call: Callable[[ScoreFunction], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call(normal)
    assert "\n" not in str(error.value)


def test_error_falls_faster_than_the_fifth_power_of_the_cells() -> None:
    mixtures = Mixtures(*(torch.tensor([row], dtype=FLOAT64) for row in ([0.4, 0.6], [-1.0, 1.3], [0.9, 0.8])))
    errors = []
    for nodes in (81, 161):
        x = torch.linspace(-9.0, 9.0, nodes, dtype=FLOAT64)[None]
        density = from_nodes(x, *mixtures.score(x, torch.tensor([0])))
        errors.append(float((density.log_prob(x) - mixtures.log_prob(x)).abs().max()))
    assert errors[0] > 32.0 * errors[1] > 0.0


def test_a_score_of_degree_five_is_integrated_exactly_on_uneven_nodes() -> None:
    x = torch.tensor([[-2.0, -1.1, -0.9, 0.3, 1.4, 1.6, 2.5]], dtype=FLOAT64)
    density = from_nodes(x, -(x**5) - x, -5.0 * x**4 - 1.0)
    expected = -(x**6) / 6.0 - x**2 / 2.0
    inner = slice(1, -1)  # the outer cells know one neighbour less
    step = density.energy[:, inner].diff() - expected[:, inner].diff()
    torch.testing.assert_close(step, torch.zeros_like(step), atol=1e-12, rtol=0.0)


def test_two_nodes_are_enough_to_start_from() -> None:
    density = integrate(normal, torch.tensor([-30.0, 30.0], dtype=FLOAT64), torch.zeros(3, dtype=FLOAT64))
    torch.testing.assert_close(
        density.log_prob(torch.zeros(3, 1, dtype=FLOAT64)), torch.full((3, 1), -LOG_SQRT_2PI).double()
    )
    density = integrate(normal, torch.tensor([[-30.0, 30.0]], dtype=FLOAT64))
    assert bool(density.converged.all())


@pytest.mark.parametrize("distance", [0.0, 1e-3, 3e-3, 1e-2, 0.1])
def test_an_anchor_close_to_a_node_does_not_amplify_the_rounding_of_the_score(distance: float) -> None:
    mixtures = random_mixtures(500, 3, logistic=False)
    nodes = grid(17)

    def rounded(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        s, ds = mixtures.score(x, rows)
        return s.float().double(), ds.float().double()

    anchor = nodes[8:9] + distance
    density = integrate(rounded, nodes.expand(500, -1), anchor.expand(500))
    error = (density.log_prob(anchor.expand(500, 1)) - mixtures.log_prob(anchor.expand(500, 1)))[:, 0].abs()
    assert bool(density.converged.all())
    assert float((error > 1e-5).double().mean()) < 0.01  # it was nearly half of them
    assert float(error.max()) < 2e-3


@pytest.mark.parametrize("deviation", [0.02, 0.3, 2.0])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_a_quantile_is_as_exact_as_the_square_of_its_tolerance(deviation: float, tolerance: float) -> None:
    def score(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:  # two modes, steep cells between and outside
        far = 6.0 * deviation
        weight = torch.sigmoid(-2.0 * x * far / deviation**2)
        slope = -2.0 * far / deviation**2 * weight * (1.0 - weight)
        return -(x - far + 2.0 * far * weight) / deviation**2, -(1.0 + 2.0 * far * slope) / deviation**2

    nodes = torch.linspace(-40.0, 40.0, 25, dtype=torch.float64)
    density = integrate(score, nodes, tol=1e-8, max_evaluations=4096)
    u = torch.cat([torch.tensor([1e-7, 1e-4]), torch.linspace(0.01, 0.99, 99), torch.tensor([1.0 - 1e-4, 1.0 - 1e-7])])
    u = u.double()[None]
    error = (density.cdf(density.quantile(u, tolerance=tolerance)) - u).abs()
    assert bool(density.converged.all())
    assert error.max().item() < 10.0 * tolerance**2 + 1e-11


def test_where_a_quantile_is_first_looked_for() -> None:
    u = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=FLOAT64)
    for rise in (-3.0, -0.2, 0.0, 1e-9, 0.7, 5.0):
        place = piecewise._exponential_quantile(u, torch.full_like(u, rise))
        mass = torch.expm1(rise * place) / math.expm1(rise) if rise else place
        torch.testing.assert_close(mass, u, rtol=0.0, atol=1e-12)
    for rise in (-1e9, -800.0, 800.0, 1e9):  # so steep that all mass is at one end
        place = piecewise._exponential_quantile(u[1:-1], torch.full_like(u[1:-1], rise))
        torch.testing.assert_close(place, torch.full_like(place, float(rise > 0.0)), rtol=0.0, atol=4e-3)


def test_a_quantile_takes_few_newton_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    density = integrate(lambda x, _: (-x, torch.full_like(x, -1.0)), torch.linspace(-6.0, 6.0, 17, dtype=FLOAT64))
    steps = 0

    def counted(*arguments: Any) -> tuple[Tensor, Tensor]:
        nonlocal steps
        steps += 1
        return mean_and_end(*arguments)

    mean_and_end = piecewise._mean_and_end
    monkeypatch.setattr(piecewise, "_mean_and_end", counted)
    density.quantile(torch.linspace(0.001, 0.999, 999, dtype=FLOAT64)[None], tolerance=1e-3)
    assert steps <= 2
