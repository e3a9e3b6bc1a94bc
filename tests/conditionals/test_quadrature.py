"""Integration from scores: normalisers, error estimates and gradients against closed forms."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arcsm.conditionals import quadrature
from arcsm.conditionals.quadrature import ScoreFunction, from_nodes, integrate
from mixtures import FLOAT64, LOG_SQRT_2PI, Mixtures, gaussians, grid, log_uniform, random_mixtures, uniform


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


def test_curvature_reveals_an_error_that_slopes_hide() -> None:
    # s = x (1 - x): over [0, 1] both its rise and the mean of its slopes are zero; its second derivative is -2
    s, ds = torch.zeros(1, 2, dtype=FLOAT64), torch.tensor([[1.0, -1.0]], dtype=FLOAT64)
    width = torch.ones(1, 1, dtype=FLOAT64)
    for dds, off in ((-2.0, 0.0), (0.0, 2.0 / 60.0)):
        error = quadrature.step_errors(width, s, ds, torch.full_like(s, dds), calibration=1.0)
        assert error.item() == pytest.approx(quadrature.CALIBRATION * off, abs=1e-15)


def test_an_unresolved_switch_counts_in_full() -> None:
    s, ds = torch.tensor([[3.0, -3.0]], dtype=FLOAT64), torch.zeros(1, 2, dtype=FLOAT64)  # a sign change between modes
    width = torch.ones(1, 1, dtype=FLOAT64)
    likely, possible = (
        quadrature.step_errors(width, s, ds, torch.zeros_like(s), calibration).item()
        for calibration in (quadrature.CALIBRATION, 1.0)
    )
    assert possible == pytest.approx(0.3 * 6.0)
    assert likely == pytest.approx(quadrature.CALIBRATION * possible)


@pytest.mark.parametrize(("scale", "half_gap"), [(0.02, 1.0), (0.05, 2.0), (0.1, 2.0), (0.1, 1.0)])
def test_far_narrow_modes_are_found_although_a_node_lies_inside_the_switch(scale: float, half_gap: float) -> None:
    inside = torch.linspace(2.0, 3.2, 20, dtype=FLOAT64) * scale**2 / half_gap  # from a node, in widths of the switch
    middle = torch.linspace(-0.9, 0.9, 19, dtype=FLOAT64)[:, None] - inside  # halving cells puts a node at each tenth
    middle = middle.reshape(-1, 1)
    count = len(middle)
    means = middle + torch.tensor([-half_gap, half_gap], dtype=FLOAT64)
    modes = Mixtures(torch.full_like(means, 0.5), means, torch.full_like(means, scale))
    half = torch.tensor([0.4, 0.8, 1.2, 1.6, 2.0, 2.5, 3.0, 3.75, 5.0, 7.5, 12.0, 20.0], dtype=FLOAT64)
    nodes = torch.cat([-half.flip(0), torch.zeros(1, dtype=FLOAT64), half]).expand(count, -1)
    density = integrate(modes.score, nodes, means[:, 1])
    error = (density.log_prob(means) - modes.log_prob(means)).abs()
    assert bool(density.converged.all())
    assert float(error.max()) <= 1e-4


def test_a_smaller_tolerance_takes_more_evaluations_and_reduces_the_error() -> None:
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


def test_density_integrates_to_one_even_before_convergence() -> None:
    mixtures = random_mixtures(20, 3, False)
    density = integrate(mixtures.score, grid(17).expand(20, -1), max_evaluations=40)
    assert not bool(density.converged.any())
    x = torch.linspace(-25.0, 25.0, 100_001, dtype=FLOAT64).expand(20, -1)
    mass = torch.trapezoid(density.log_prob(x).exp(), x)
    torch.testing.assert_close(mass, torch.ones(20, dtype=FLOAT64), rtol=0.0, atol=0.02)


def test_a_tail_that_rises_is_flagged_not_normalised() -> None:
    rising = integrate(
        lambda x, _: (torch.ones_like(x), torch.zeros_like(x)), grid(9).expand(2, -1), max_evaluations=64
    )
    assert not bool(rising.converged.any())
    assert bool((rising.log_mass == math.inf).all())


def test_a_nan_score_is_flagged() -> None:
    broken = integrate(lambda x, _: (x * math.nan, x * math.nan), grid(9).expand(2, -1), max_evaluations=64)
    assert not bool(broken.converged.any())


def test_densities_at_far_anchors_are_finite_and_decrease() -> None:
    truth = gaussians(torch.zeros(41).double(), torch.full((41,), 0.5).double())
    anchor = torch.linspace(-30.0, 30.0, 41, dtype=FLOAT64)  # up to 60 standard deviations; the nodes end at 16
    density = integrate(truth.score, grid(9, 8.0).expand(41, -1), anchor)
    log_prob = density.log_prob(anchor[:, None])[:, 0]
    torch.testing.assert_close(log_prob, truth.log_prob(anchor[:, None])[:, 0], rtol=1e-9, atol=1e-5)
    assert bool((log_prob[:21].diff() > 0.0).all())
    assert bool((log_prob[20:].diff() < 0.0).all())


def test_rows_do_not_depend_on_their_batch() -> None:
    mixtures = random_mixtures(40, 3, True)
    anchor = mixtures.moments()[0]
    nodes = grid(17).expand(40, -1)
    x, u = mixtures.means, uniform(40, 3)

    def results(index: Tensor) -> list[Tensor]:
        part = mixtures.rows(index)
        density = integrate(part.score, nodes[index], anchor[index])
        found = [density.log_prob(x[index]), density.cdf(x[index]), density.icdf(u[index])]
        return [*found, *density.mean_and_variance(), density.error, density.evaluations, density.converged]

    whole = results(torch.arange(40))
    shuffled = torch.randperm(40)
    for got, wanted in zip(results(shuffled), whole, strict=True):
        torch.testing.assert_close(got, wanted[shuffled], rtol=1e-9, atol=1e-9)
    for row in range(0, 40, 7):
        for got, wanted in zip(results(torch.tensor([row])), whole, strict=True):
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
    torch.testing.assert_close(density.cdf(density.icdf(u)), u, rtol=0.0, atol=1e-8)


def test_inputs_are_not_mutated_and_no_gradients_are_recorded() -> None:
    nodes, anchor = grid(17).repeat(3, 1), torch.zeros(3, dtype=FLOAT64)
    before = nodes.clone()
    scale = torch.ones((), dtype=FLOAT64, requires_grad=True)
    density = integrate(lambda x, _: (-x * scale, -scale.expand_as(x)), nodes, anchor)
    assert torch.equal(nodes, before)
    assert not density.log_mass.requires_grad


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
def test_invalid_arguments_raise(call: Callable[[ScoreFunction], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call(normal)
    assert "\n" not in str(error.value)


def test_two_nodes_are_enough_to_start_from() -> None:
    density = integrate(normal, torch.tensor([-30.0, 30.0], dtype=FLOAT64), torch.zeros(3, dtype=FLOAT64))
    torch.testing.assert_close(
        density.log_prob(torch.zeros(3, 1, dtype=FLOAT64)), torch.full((3, 1), -LOG_SQRT_2PI).double()
    )
    density = integrate(normal, torch.tensor([[-30.0, 30.0]], dtype=FLOAT64))
    assert bool(density.converged.all())


@pytest.mark.parametrize("distance", [0.0, 1e-3, 3e-3, 1e-2, 0.1])
def test_an_anchor_close_to_a_node_does_not_amplify_rounding_errors(distance: float) -> None:
    mixtures = random_mixtures(500, 3, logistic=False)
    nodes = grid(17)

    def rounded(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        s, ds = mixtures.score(x, rows)
        return s.float().double(), ds.float().double()

    anchor = nodes[8:9] + distance
    density = integrate(rounded, nodes.expand(500, -1), anchor.expand(500))
    error = (density.log_prob(anchor.expand(500, 1)) - mixtures.log_prob(anchor.expand(500, 1)))[:, 0].abs()
    assert bool(density.converged.all())
    assert float((error > 1e-5).double().mean()) < 0.01  # without snapping, almost half
    assert float(error.max()) < 2e-3
