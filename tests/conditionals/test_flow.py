"""The flow through the noise levels: it carries one density to another, in both directions, to the tolerance."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from arcsm import NoiseLadder
from arcsm.conditionals.flow import Carried, LevelScore, follow

FLOAT64 = torch.float64
GRID = torch.linspace(-4.0, 4.0, 401, dtype=FLOAT64)
FAR = torch.tensor([30.0, -77.0, 1e3, -1e10, 1e30], dtype=FLOAT64)
SIGMA_MAX, SIGMA_MIN = 1.0, 0.05
UP, DOWN = (SIGMA_MIN, SIGMA_MAX), (SIGMA_MAX, SIGMA_MIN)
MEANS, SDS, WEIGHTS = (-1.0, 1.0), (0.1, 0.2), (0.3, 0.7)

#: Scores of ``n`` points and ``n`` conditionals: ``score(x, rows, sigma)``.
RowScore = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def mixture_terms(x: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return log terms, distances to the means and variances of a mixture of two Gaussians with noise."""
    means, sd = torch.tensor(MEANS, dtype=FLOAT64), torch.tensor(SDS, dtype=FLOAT64)
    weights = torch.tensor(WEIGHTS, dtype=FLOAT64)
    variance, distance = sd.square() + sigma**2, x.unsqueeze(-1) - means
    log_terms = weights.log() - 0.5 * (distance.square() / variance + torch.log(2.0 * math.pi * variance))
    return log_terms, distance, variance


def log_prob(x: Tensor, sigma: float) -> Tensor:
    return torch.logsumexp(mixture_terms(x, sigma)[0], -1)


def cdf(x: Tensor, sigma: float) -> Tensor:
    parts = [
        weight * torch.special.ndtr((x - mean) / math.hypot(sd, sigma))
        for weight, mean, sd in zip(WEIGHTS, MEANS, SDS, strict=True)
    ]
    return torch.stack(parts).sum(0)


def mixture_score(x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    log_terms, distance, variance = mixture_terms(x, sigma)
    posterior, slopes = torch.softmax(log_terms, -1), -distance / variance
    s = (posterior * slopes).sum(-1)
    return s, (posterior * ((slopes - s.unsqueeze(-1)).square() - 1.0 / variance)).sum(-1)


def gaussian_score(x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    precision = 1.0 / (1.0 + sigma**2)
    return -x * precision, torch.full_like(x, -precision)


class Counted:
    """A score that counts its evaluations."""

    def __init__(self, score: RowScore) -> None:
        self.score, self.evaluations = score, 0

    def __call__(self, x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        self.evaluations += x.numel()
        return self.score(x, rows, sigma)


def carry(score: RowScore, x: Tensor, path: Sequence[float], tolerance: float = 1e-5, **options: float) -> Carried:
    def scores(rows: Tensor) -> LevelScore:
        return lambda x, sigma: score(x, rows, sigma)

    return follow(scores, x, path, tolerance, **options)  # type: ignore[arg-type]


def flow_log_prob(x: Tensor, tolerance: float, path: Sequence[float] = UP) -> Tensor:
    up = carry(mixture_score, x, path, tolerance)
    return log_prob(up.x, path[-1]) + up.log_slope


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_density_has_the_error_that_was_asked_for(tolerance: float) -> None:
    truth = log_prob(GRID, SIGMA_MIN)
    error = flow_log_prob(GRID, tolerance) - truth
    likely = truth.exp() > 1e-3
    assert float((truth.exp() * error.square()).sum() / truth.exp().sum()) < tolerance**2
    assert float(error[likely].abs().max()) < 10.0 * tolerance


def test_density_integrates_to_one() -> None:
    mass = torch.trapezoid(flow_log_prob(GRID, 1e-4).exp(), GRID)
    assert float(mass) == pytest.approx(1.0, abs=1e-4)


def test_quantiles_are_carried_to_quantiles() -> None:
    u = cdf(GRID, SIGMA_MAX)
    error = (cdf(carry(mixture_score, GRID, DOWN, 1e-3).x, SIGMA_MIN) - u).abs()
    assert float(error.max()) < 1e-3


def test_down_inverts_up() -> None:
    x = GRID[50:-50]
    up = carry(mixture_score, x, UP, 1e-7)
    down = carry(mixture_score, up.x, DOWN, 1e-7)
    likely = log_prob(x, SIGMA_MIN) > -10.0
    assert float((down.x - x)[likely].abs().max()) < 1e-5
    assert float((down.log_slope + up.log_slope)[likely].abs().max()) < 1e-4


def test_log_slope_is_the_derivative() -> None:
    x = GRID[::4].clone().requires_grad_()
    up = carry(mixture_score, x, UP, 1e-6)
    (slope,) = torch.autograd.grad(up.x.sum(), x)
    torch.testing.assert_close(up.log_slope.detach(), slope.log(), rtol=0.0, atol=2e-4)


def test_gaussians_stand_still_in_units_of_the_base() -> None:
    up = carry(gaussian_score, GRID, UP)
    factor = math.sqrt((1.0 + SIGMA_MAX**2) / (1.0 + SIGMA_MIN**2))
    torch.testing.assert_close(up.x, factor * GRID, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(up.log_slope, torch.full_like(GRID, math.log(factor)), rtol=1e-12, atol=1e-14)


def test_the_method_is_of_fourth_order() -> None:
    """Tolerances fall with the fourth power of the step, and so must the errors of steps of one length."""
    x = GRID[GRID.abs() < 1.5][::3]
    truth = log_prob(x, SIGMA_MIN)
    errors = []
    for steps in (40, 80, 160):
        path = NoiseLadder(SIGMA_MAX, SIGMA_MIN, levels=2).path(steps)[::-1]
        error = (flow_log_prob(x, 1e6, path) - truth)[log_prob(x, SIGMA_MIN) > -3.0]
        errors.append(float(error.square().mean().sqrt()))
    assert errors[0] > 8.0 * errors[1] > 64.0 * errors[2]


def test_rows_are_independent() -> None:
    x = torch.cat([GRID[::80], FAR])
    for path in (UP, DOWN):
        together = carry(mixture_score, x, path, 1e-3)
        for row in (0, 2, len(x) - 1):
            alone = carry(mixture_score, x[row : row + 1], path, 1e-3)
            for part, whole in zip(alone, together, strict=True):
                torch.testing.assert_close(part, whole[row : row + 1], rtol=1e-12, atol=1e-12)


def test_scores_are_evaluated_for_their_own_rows() -> None:
    shift = torch.linspace(-1.0, 1.0, 21, dtype=FLOAT64)

    def shifted(x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        return mixture_score(x - shift[rows], rows, sigma)

    x = torch.linspace(-2.0, 2.0, 21, dtype=FLOAT64)
    found = carry(shifted, x + shift, UP, 1e-6)
    expected = carry(mixture_score, x, UP, 1e-6)
    torch.testing.assert_close(found.x - shift, expected.x, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(found.log_slope, expected.log_slope, rtol=0.0, atol=1e-5)


def test_the_score_near_the_end_comes_along() -> None:
    for score, path in ((mixture_score, UP), (mixture_score, (SIGMA_MAX,)), (gaussian_score, DOWN)):
        found = carry(score, GRID, path, 1e-4, tail=3.0)
        s, ds = score(found.near, torch.arange(len(GRID)), path[-1])
        inside = GRID.abs() < 3.0
        torch.testing.assert_close((found.score[inside], found.derivative[inside]), (s[inside], ds[inside]))
        assert float((found.near - found.x).abs().max()) < 0.05


def test_a_path_of_one_level_is_the_identity() -> None:
    found = carry(mixture_score, GRID, (0.3,))
    assert torch.equal(found.x, GRID)
    assert torch.equal(found.log_slope, torch.zeros_like(GRID))


def test_scores_without_derivatives_carry_points_alone() -> None:
    def scores(rows: Tensor) -> LevelScore:
        return lambda x, sigma: (mixture_score(x, rows, sigma)[0], None)

    found = follow(scores, GRID, DOWN, 1e-4)
    torch.testing.assert_close(found.x, carry(mixture_score, GRID, DOWN, 1e-6).x, rtol=0.0, atol=1e-4)
    assert bool(found.log_slope.isnan().all())


@pytest.mark.parametrize(("path", "tolerance"), [(UP, 1e-8), (DOWN, 1e-3)])
def test_single_precision_follows_double(path: tuple[float, float], tolerance: float) -> None:
    """A tolerance below the rounding error of single precision counts as that error."""
    x = torch.linspace(-2.0, 2.0, 101, dtype=FLOAT64)

    def single(x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        s, ds = mixture_score(x.double(), rows, sigma)
        return s.float(), ds.float()

    got = carry(single, x.float(), path, tolerance)
    expected = carry(mixture_score, x, path, max(tolerance, 1e-7))
    assert got.x.dtype == torch.float32
    likely = log_prob(x, path[0]) > -10.0
    assert bool(got.converged[likely].all())
    atol = 1e-3 if tolerance < 1e-3 else 1e-2
    torch.testing.assert_close(got.log_slope.double()[likely], expected.log_slope[likely], rtol=0.0, atol=atol)
    torch.testing.assert_close(got.x.double()[likely], expected.x[likely], rtol=0.0, atol=atol)


def test_points_that_cannot_be_followed_are_flagged() -> None:
    def jumping(x: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        return 80.0 * ((x / 0.1).floor() % 2) - 40.0, torch.zeros_like(x)

    x = torch.tensor([0.0, 0.05, 0.3, 30.0], dtype=FLOAT64)
    counted = Counted(jumping)
    found = carry(counted, x, DOWN, 1e-6, tail=20.0)
    assert found.converged.tolist() == [False, False, False, True]
    assert bool(found.x.isfinite().all())
    assert counted.evaluations / 3 < 2 * 512


def test_few_evaluations_leave_points_unconverged() -> None:
    counted = Counted(mixture_score)
    found = carry(counted, GRID, UP, 1e-6, max_evaluations=80)
    assert 0.0 < float(found.converged.double().mean()) < 1.0
    assert counted.evaluations <= 2 * 80 * len(GRID)


def test_tails_need_no_evaluation() -> None:
    counted = Counted(gaussian_score)
    found = carry(counted, FAR, UP, tail=20.0)
    assert counted.evaluations == 0
    assert bool(found.converged.all())
    factor = math.sqrt((1.0 + SIGMA_MAX**2) / (1.0 + SIGMA_MIN**2))
    torch.testing.assert_close(found.x, factor * FAR, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(found.near, found.x)
    torch.testing.assert_close(found.score, gaussian_score(found.x, FAR, SIGMA_MAX)[0])
    torch.testing.assert_close(found.derivative, gaussian_score(found.x, FAR, SIGMA_MAX)[1])
