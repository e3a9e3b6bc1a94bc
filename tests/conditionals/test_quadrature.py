"""Integration from scores: normalisers, error estimates and gradients against closed forms."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from arcsm.conditionals.quadrature import ScoreFunction, from_nodes, integrate
from mixtures import FLOAT64, LOG_SQRT_2PI, Mixtures, grid, random_mixtures, uniform


@pytest.mark.parametrize(("components", "logistic"), [(1, False), (3, False), (3, True)])
def test_mixtures_up_to_8_scales_apart_take_128_evaluations(components: int, logistic: bool) -> None:
    mixtures = random_mixtures(100, components, logistic)
    density = integrate(mixtures.score, grid(17).expand(100, -1), max_evaluations=128)
    mode = mixtures.mode()
    assert float((density.log_prob(mode) - mixtures.log_prob(mode)).abs().max()) <= 1e-4
    assert int(density.evaluations.max()) <= 128


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("max_evaluations", [32, 64, 256])
def test_error_is_below_ten_times_its_estimate_or_flagged(max_evaluations: int, anchored: bool) -> None:
    mixtures = random_mixtures(200, 3, logistic=True)
    x = mixtures.mode()
    if anchored:
        x = x + 2.0 * uniform(200, 1, low=-1.0, high=1.0)
    density = integrate(
        mixtures.score, grid(17).expand(200, -1), x[:, 0] if anchored else None, max_evaluations=max_evaluations
    )
    error = (density.log_prob(x) - mixtures.log_prob(x))[:, 0].abs()
    assert bool(((error <= 10.0 * density.error + 1e-9) | ~density.converged).all())
    assert bool((density.error[density.converged] <= 1e-5).all())


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
    x = torch.linspace(-25.0, 25.0, 10_001, dtype=FLOAT64).expand(20, -1)
    mass = torch.trapezoid(density.log_prob(x).exp(), x)
    torch.testing.assert_close(mass, torch.ones(20, dtype=FLOAT64), rtol=0.0, atol=0.02)


def test_scores_that_cannot_be_integrated_are_flagged() -> None:
    nodes = grid(9).expand(2, -1)
    rising = integrate(lambda x, _: (torch.ones_like(x), torch.zeros_like(x)), nodes, max_evaluations=64)
    assert not bool(rising.converged.any())
    assert bool((rising.log_mass == math.inf).all())
    broken = integrate(lambda x, _: (x * math.nan, x * math.nan), nodes, max_evaluations=64)
    assert not bool(broken.converged.any())


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


def nodes_and_scores() -> tuple[Tensor, Tensor, Tensor]:
    mixtures = random_mixtures(3, 2, False)
    x = mixtures.moments()[0][:, None] + grid(9, 3.0)
    return x, *mixtures.score(x, torch.arange(3))


def test_log_density_and_distribution_between_nodes_are_differentiable() -> None:
    x, s, ds = nodes_and_scores()
    middle = x[:, 2:5] + 0.1

    def between(s: Tensor, ds: Tensor) -> tuple[Tensor, Tensor]:
        density = from_nodes(x, s, ds)
        return density.log_prob(middle), density.cdf(middle)

    assert torch.autograd.gradcheck(between, (s.requires_grad_(), ds.requires_grad_()))


def test_repeated_nodes_give_finite_gradients_and_no_mass() -> None:
    x, s, ds = nodes_and_scores()
    plain = from_nodes(x, s, ds).log_mass
    x, s, ds = (torch.cat([t, t[:, -1:], t[:, -1:]], 1).requires_grad_() for t in (x, s, ds))
    repeated = from_nodes(x, s, ds)
    torch.testing.assert_close(repeated.log_mass, plain)
    for gradient in torch.autograd.grad(repeated.log_mass.sum(), (s, ds)):
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("tail", [-1e-14, -1e6, 1e-3])
def test_gradients_of_extreme_tails_are_finite(tail: float) -> None:
    x = grid(5, 2.0)[None]
    s, ds = (-3.0 * x).requires_grad_(), torch.full_like(x, tail).requires_grad_()
    for gradient in torch.autograd.grad(from_nodes(x, s, ds).log_mass.sum(), (s, ds)):
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(("shift", "scale"), [(-100.0, 1.0), (30.0, 1e3), (0.3, 1e-3)])
def test_shifting_and_scaling_shift_and_scale_the_density(shift: float, scale: float) -> None:
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


@pytest.mark.parametrize("distance", [0.0, 1e-3])
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
