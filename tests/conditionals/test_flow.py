"""The noise ladder as a flow: it is invertible, its slope is exact, and it converges to the truth."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from arcsm import NoiseLadder
from arcsm.conditionals.flow import LevelScore, Tail, flow_down, flow_up

FLOAT64 = torch.float64
TOLERANCE = 1e-5  # of inverting a step, in sigmas
STEPS = (20, 60)
FEW_STEPS = 5


def mixture_terms(x: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return log terms, distances to the means and variances of a mixture of two Gaussians with noise."""
    means, sd = torch.tensor([-1.0, 1.0], dtype=FLOAT64), torch.tensor([0.1, 0.2], dtype=FLOAT64)
    weights = torch.tensor([0.3, 0.7], dtype=FLOAT64)
    variance, distance = sd.square() + sigma**2, x.unsqueeze(-1) - means
    log_terms = weights.log() - 0.5 * (distance.square() / variance + torch.log(2.0 * math.pi * variance))
    return log_terms, distance, variance


def log_prob(x: Tensor, sigma: float) -> Tensor:
    return torch.logsumexp(mixture_terms(x, sigma)[0], -1)


def score(x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    log_terms, distance, variance = mixture_terms(x, sigma)
    posterior, slopes = torch.softmax(log_terms, -1), -distance / variance
    s = (posterior * slopes).sum(-1)
    return s, (posterior * ((slopes - s.unsqueeze(-1)).square() - 1.0 / variance)).sum(-1)


def gaussian_score(x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    precision = 1.0 / (1.0 + sigma**2)
    return -x * precision, torch.full_like(x, -precision)


def path(steps: int, low: float = 0.05) -> tuple[float, ...]:
    return NoiseLadder(1.0, low, levels=2).path(steps)


def flow_log_prob(x: Tensor, sigmas: Sequence[float]) -> Tensor:
    base, log_slope, _ = flow_up(score, x, sigmas)
    return log_prob(base, sigmas[0]) - log_slope


GRID = torch.linspace(-4.0, 4.0, 8001, dtype=FLOAT64)


@pytest.mark.parametrize("steps", [FEW_STEPS, *STEPS])
def test_up_inverts_down_to_the_tolerance_of_each_step(steps: int) -> None:
    base, log_slope, _ = flow_up(score, GRID, path(steps))
    error = (flow_down(score, base, path(steps)) - GRID).abs()
    assert bool((error <= steps * TOLERANCE * log_slope.exp().clamp(min=1.0)).all())


@pytest.mark.parametrize("steps", [FEW_STEPS, *STEPS])
def test_down_inverts_up_where_the_data_are(steps: int) -> None:
    start = torch.linspace(-3.0, 3.0, 2001, dtype=FLOAT64)
    base, log_slope, _ = flow_up(score, flow_down(score, start, path(steps)), path(steps))
    assert bool(((base - start).abs() <= steps * TOLERANCE * (-log_slope).exp().clamp(min=1.0)).all())


@pytest.mark.parametrize(
    "distance",
    [
        *(30.0, 300.0),
        1e4,
    ],
)
def test_far_outliers_need_no_more_evaluations_than_others(distance: float) -> None:
    calls = 0

    def counted(x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        return gaussian_score(x, rows, sigma)

    x = torch.tensor([distance], dtype=FLOAT64)
    base, log_slope, _ = flow_up(counted, x, path(10))
    assert calls <= 10 * 20
    torch.testing.assert_close(flow_down(gaussian_score, base, path(10)), x, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(log_slope, torch.log(x / base), rtol=1e-6, atol=0.0)  # a linear flow


@pytest.mark.parametrize("steps", STEPS)
def test_flow_preserves_the_order_of_points(steps: int) -> None:
    start = torch.linspace(-6.0, 6.0, 4001, dtype=FLOAT64)
    assert bool((flow_down(score, start, path(steps)).diff() > 0.0).all())
    assert bool((flow_up(score, GRID, path(steps))[0].diff() > -1e-4).all())


@pytest.mark.parametrize("steps", [1, 5, 20, 60])
def test_log_slope_is_that_of_the_flow_down(steps: int) -> None:
    low = 0.5 if steps == 1 else 0.05
    x = torch.cat([torch.linspace(lo, hi, 40, dtype=FLOAT64) for lo, hi in ((-3.0, -0.7), (0.4, 3.0))])
    base, log_slope, _ = flow_up(score, x, path(steps, low))
    base.requires_grad_()
    (slope,) = torch.autograd.grad(flow_down(score, base, path(steps, low)).sum(), base)
    torch.testing.assert_close(log_slope, slope.log(), rtol=0.0, atol=steps * 1e-4)
    h = 1e-6
    with torch.no_grad():
        difference = flow_down(score, base + h, path(steps, low)) - flow_down(score, base - h, path(steps, low))
    torch.testing.assert_close(log_slope, (difference / (2.0 * h)).log(), rtol=0.0, atol=steps * 1e-4)


@pytest.mark.parametrize("steps", [FEW_STEPS, 10, *STEPS])
def test_density_integrates_to_one_at_any_number_of_steps(steps: int) -> None:
    mass = torch.trapezoid(flow_log_prob(GRID, path(steps)).exp(), GRID)
    assert float(mass) == pytest.approx(1.0, abs=1e-4)


def test_gaussian_flow_is_the_closed_form_to_second_order() -> None:
    x = torch.linspace(-5.0, 5.0, 11, dtype=FLOAT64)
    shrinkage = math.sqrt((1.0 + 0.05**2) / 2.0)
    errors = [float((flow_down(gaussian_score, x, path(steps)) - shrinkage * x).abs().max()) for steps in (20, 40, 80)]
    assert errors[-1] < 5e-4
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4.0, rel=0.1)
    base, log_slope, _ = flow_up(gaussian_score, x, path(80))
    torch.testing.assert_close(base, x / shrinkage, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(log_slope, torch.full_like(x, math.log(shrinkage)), rtol=0.0, atol=1e-3)


def test_density_of_two_modes_approaches_the_truth_as_steps_grow() -> None:
    truth = log_prob(GRID, 0.05)
    likely = truth > -8.0
    errors, divergences = [], []
    for steps in (15, 30, 60, 120):
        off = flow_log_prob(GRID, path(steps)) - truth
        errors.append(float(off[likely].abs().max()))
        divergences.append(abs(float(torch.trapezoid(-truth.exp() * off, GRID))))
    assert max(divergences[2:]) < 1e-4
    assert errors[2] < 0.1
    assert errors[3] < 0.03
    assert errors[0] > errors[1] > 2.5 * errors[2] > 2.5 * 2.5 * errors[3]


def test_samples_carried_down_have_the_mass_of_each_mode() -> None:
    u = (torch.arange(20_000, dtype=FLOAT64) + 0.5) / 20_000
    grid = torch.linspace(-8.0, 8.0, 40_001, dtype=FLOAT64)
    cdf = torch.cumulative_trapezoid(log_prob(grid, 1.0).exp(), grid)
    start = grid[1:][torch.searchsorted(cdf, u).clamp(max=len(cdf) - 1)]
    x = flow_down(score, start, path(60))
    assert float((x < 0.0).double().mean()) == pytest.approx(0.3, abs=1e-3)
    for mean, sd, side in ((-1.0, 0.1, x < 0.0), (1.0, 0.2, x > 0.0)):
        assert float(x[side].mean()) == pytest.approx(mean, abs=5e-3)
        assert float(x[side].std()) == pytest.approx(math.hypot(sd, 0.05), rel=0.02)


@pytest.mark.parametrize("steps", [5, 20])
def test_rows_are_independent(steps: int) -> None:
    x = GRID[::400]
    base, log_slope, _ = flow_up(score, x, path(steps))
    down = flow_down(score, x, path(steps))
    for row in range(len(x)):
        one = x[row : row + 1]
        torch.testing.assert_close(flow_down(score, one, path(steps)), down[row : row + 1])
        alone, its_slope, _ = flow_up(score, one, path(steps))
        torch.testing.assert_close((alone, its_slope), (base[row : row + 1], log_slope[row : row + 1]))


def test_scores_are_evaluated_for_their_own_rows() -> None:
    shift = torch.linspace(-2.0, 2.0, 21, dtype=FLOAT64)

    def shifted(x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        return score(x - shift[rows], rows, sigma)

    x = torch.linspace(-3.0, 3.0, 21, dtype=FLOAT64)
    base, log_slope, _ = flow_up(shifted, x + shift, path(10))
    expected, expected_slope, _ = flow_up(score, x, path(10))
    torch.testing.assert_close(base - shift, expected, rtol=0.0, atol=1e-3)
    torch.testing.assert_close(log_slope, expected_slope, rtol=0.0, atol=1e-2)
    torch.testing.assert_close(flow_down(shifted, x + shift, path(10)) - shift, flow_down(score, x, path(10)))


@pytest.mark.parametrize("sigmas", [(), (0.3,)])
def test_a_path_without_steps_is_the_identity(sigmas: tuple[float, ...]) -> None:
    base, log_slope, _ = flow_up(score, GRID, sigmas)
    assert torch.equal(base, GRID)
    assert torch.equal(log_slope, torch.zeros_like(GRID))
    assert torch.equal(flow_down(score, GRID, sigmas), GRID)


def test_the_input_is_not_mutated() -> None:
    x = GRID.clone()
    flow_down(score, x, path(5))
    flow_up(score, x, path(5))
    assert torch.equal(x, GRID)


def test_steps_that_would_fold_are_refined_in_both_directions() -> None:
    def turning(x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        slope = -8.0 if sigma > 0.6 else 8.0  # one Heun step from 1 to 0.5 has a negative slope
        return slope * x, torch.full_like(x, slope)

    x = torch.linspace(-2.0, 2.0, 9, dtype=FLOAT64)
    down = flow_down(turning, x, (1.0, 0.5))
    assert bool((down.diff() > 0.0).all())
    base, log_slope, _ = flow_up(turning, down, (1.0, 0.5))
    torch.testing.assert_close(base, x, rtol=0.0, atol=1e-3)
    slope = (down[-1] - down[0]) / (x[-1] - x[0])
    torch.testing.assert_close(log_slope, slope.log().expand(9), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("direction", [flow_down, lambda *arguments: flow_up(*arguments)[0]])
def test_single_precision_follows_double(direction: Callable[..., Tensor]) -> None:
    x = torch.linspace(-3.0, 3.0, 101, dtype=FLOAT64)

    def single(x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        s, ds = gaussian_score(x, rows, sigma)
        return s.float(), ds.float()

    got = direction(single, x.float(), path(10))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), direction(gaussian_score, x, path(10)), rtol=1e-3, atol=1e-3)


def test_rows_with_a_hard_inversion_do_not_change_the_others() -> None:
    far = torch.cat([GRID[::800], torch.tensor([1e4, -3e3], dtype=FLOAT64)])
    together = flow_up(gaussian_score, far, path(10))
    alone = [flow_up(gaussian_score, one[None], path(10)) for one in far]
    for part, rows in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(part, torch.cat(rows))


def test_a_smooth_flow_is_inverted_in_about_one_newton_step_a_level() -> None:
    evaluations = 0

    def counted(x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        nonlocal evaluations
        evaluations += len(x)
        return score(x, rows, sigma)

    flow_up(counted, GRID, path(20))
    precise = evaluations / len(GRID)
    evaluations = 0
    flow_up(counted, GRID, path(20), tolerance=1e-2)
    assert 2.0 * 20 < evaluations / len(GRID) < 2.5 * 20 < 3.0 * 20 < precise < 4.0 * 20


def rippled_score(x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Return scores with an error that differs between levels, so that no step carries the density exactly."""
    s, ds = score(x, rows, sigma)
    frequency, size = 3.0 / sigma, 0.2 / sigma
    angle = frequency * x + 40.0 * sigma
    return s + size * torch.sin(angle), ds + size * frequency * torch.cos(angle)


@pytest.mark.parametrize("function", [score, rippled_score])
@pytest.mark.parametrize("steps", [10, *STEPS])
def test_the_last_newton_step_corrects_a_rough_inversion(
    steps: int, function: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    exact, exact_slope, converged = flow_up(function, GRID[::4], path(steps), tolerance=1e-10)
    before = torch.inf
    for tolerance in (1e-2, 1e-3, 1e-4):
        base, log_slope, found = flow_up(function, GRID[::4], path(steps), tolerance)
        whole = converged & found
        assert bool(whole.double().mean() > 0.99)
        assert float((base - exact)[whole].abs().max()) < 0.1 * tolerance  # almost quadratic
        error = float((log_slope - exact_slope)[whole].abs().max())
        assert error < min(4.0 * tolerance, before)  # log densities use a quarter of their tolerance
        before = error


def test_points_outside_the_range_are_flagged_as_unconverged() -> None:
    def jumping(x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        return torch.where(x > 0.0, 40.0, -40.0) + 0.0 * x, torch.zeros_like(x)  # no point is carried close to zero

    x = torch.tensor([-30.0, 0.05, 30.0], dtype=FLOAT64)
    _, _, converged = flow_up(jumping, x, path(3))
    assert converged.tolist() == [True, False, True]


@pytest.mark.parametrize("tolerance", [1e-5, 1e-8])
def test_the_tolerance_is_limited_by_single_precision(tolerance: float) -> None:
    x = torch.linspace(-3.0, 3.0, 101, dtype=FLOAT64)

    def single(x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        s, ds = score(x.double(), rows, sigma)
        return s.float(), ds.float()

    _, log_slope, converged = flow_up(single, x.float(), path(20), tolerance)
    assert bool(converged.all())
    torch.testing.assert_close(log_slope.double(), flow_up(score, x, path(20), 1e-10)[1], rtol=0.0, atol=5e-3)


FAR = torch.tensor([30.0, -77.0, 1e3, -1e10, 1e30], dtype=FLOAT64)


def gaussian_tail(sigma: float) -> Tail:
    return Tail(20.0 * math.sqrt(1.0 + sigma**2), 1.0 / (1.0 + sigma**2))


def test_tails_are_inverted_in_closed_form_with_one_evaluation() -> None:
    evaluations = 0

    def counted(x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        nonlocal evaluations
        evaluations += x.numel()
        return gaussian_score(x, rows, sigma)

    base, log_slope, converged = flow_up(counted, FAR, path(20), tail=gaussian_tail)
    assert evaluations == len(FAR)  # for the first velocity
    assert bool(converged.all())
    torch.testing.assert_close(flow_down(gaussian_score, base, path(20)), FAR, rtol=1e-12, atol=0.0)
    (slope,) = torch.autograd.grad(flow_down(gaussian_score, start := base.requires_grad_(), path(20)).sum(), start)
    torch.testing.assert_close(log_slope, slope.log(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [FEW_STEPS, 60])
def test_rows_in_the_tail_for_some_of_the_steps_only_agree_with_newton_steps(steps: int) -> None:
    x = torch.linspace(-50.0, 50.0, 101, dtype=FLOAT64)
    base, log_slope, converged = flow_up(gaussian_score, x, path(steps), 1e-9, gaussian_tail)
    expected, expected_slope, _ = flow_up(gaussian_score, x, path(steps), 1e-9)
    assert bool(converged.all())
    torch.testing.assert_close(base, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(log_slope, expected_slope, rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("function", [gaussian_score, score])
def test_a_far_value_without_a_known_tail_takes_few_evaluations(function: LevelScore) -> None:
    evaluations = 0

    def counted(x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        nonlocal evaluations
        evaluations += x.numel()
        return function(x, rows, sigma)

    flow_up(counted, FAR[-2:], path(10), 1e-5)
    assert evaluations < 30 * 10 * 2


def test_scores_that_are_not_numbers_end_the_iterations() -> None:
    evaluations = 0

    def broken(x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        nonlocal evaluations
        evaluations += x.numel()
        return x * math.nan, x * math.nan

    base, _, converged = flow_up(broken, torch.zeros(1, dtype=FLOAT64), path(10))
    assert bool(base.isnan().all())
    assert not bool(converged.any())
    assert evaluations < 1000
