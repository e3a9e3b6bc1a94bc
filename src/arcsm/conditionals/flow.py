"""The noise ladder as a one-dimensional normalising flow, exact in both directions.

A Heun step follows :math:`dx / d\\sigma = -\\sigma\\, s_\\sigma(x)` from :math:`\\sigma` down to
:math:`\\sigma'`, with :math:`h = \\sigma' - \\sigma` and :math:`f_\\sigma = -\\sigma s_\\sigma`:

.. math:: x' = x + \\tfrac{h}{2} \\big[f_\\sigma(x) + f_{\\sigma'}(x + h f_\\sigma(x))\\big]

A true score satisfies :math:`\\partial_x s_\\sigma \\ge -1/\\sigma^2`. A step down to no less than half the sigma is
then increasing in :math:`x` for every density, so it is invertible. Heun steps upwards would not be: they fold between
two modes. The step *down* therefore defines the flow, and a step *up* inverts it by safeguarded Newton iterations,
whose slope :math:`\\partial x' / \\partial x` has a closed form.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: ``score(x, rows, sigma)`` maps values ``(n,)`` of the conditionals ``rows (n,)`` to score and derivative, ``(n,)``.
LevelScore = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]

TOLERANCE = 1e-4  #: of inverting a step, in sigmas and in nats, before the last Newton step
_MIN_TOLERANCE = 128.0  # in units of the rounding error, which would otherwise decide convergence
_NEWTON_ITERATIONS = 60
_FAR_STEP = 2.0**-10  # least first bound on Newton steps, relative to the target: few doublings reach any distance
_MAX_REFINEMENTS = 4  # how often a step that folds is halved
_ADAMS_BASHFORTH_ORDER = 4


class Tail(NamedTuple):
    """A Gaussian around zero, which the conditionals at a sigma equal far from zero."""

    start: float  # from this distance from zero on
    precision: float


#: Returns the tails of the conditionals at a sigma.
TailOf = Callable[[float], Tail]


class Step(NamedTuple):
    """A Heun step down from points ``(n,)`` at the upper sigma.

    The derivative of the log slope is estimated by
    :math:`s_\\sigma(x) - \\frac{\\partial x'}{\\partial x}\\, s_{\\sigma'}(x')`, which is exact if the step carries the
    density of the upper score to that of the lower one.
    """

    x: Tensor  # where the step leads
    slope: Tensor  # derivative of x by the points
    log_slope_derivative: Tensor  # derivative of the log slope by the points, estimated
    velocity: Tensor  # dx / dlog(sigma) = -sigma^2 s at the points


class Inverse(NamedTuple):
    """Points ``(n,)`` at the upper sigma whose step down leads to the targets; see :class:`Step`."""

    x: Tensor
    log_slope: Tensor  # of the step at the points
    velocity: Tensor  # near the points
    converged: Tensor  # whether the iterations converged where the step increases


def flow_down(score: LevelScore, x: Tensor, path: Sequence[float]) -> Tensor:
    """Carry ``x (N,)`` from the largest sigma of the path to the smallest."""
    rows = torch.arange(len(x), device=x.device)
    for high, low in itertools.pairwise(path):
        x, _ = _step_down(score, x, rows, high, low)
    return x


def flow_up(
    score: LevelScore,
    x: Tensor,
    path: Sequence[float],
    tolerance: float = TOLERANCE,
    tail: TailOf | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Carry ``x (N,)`` from the smallest sigma of the path to the largest: the inverse of :func:`flow_down`.

    Before the last Newton step of each inversion, the residual is at most ``tolerance`` sigmas. That step is not
    evaluated again, and may change the log slope by at most ``tolerance`` nats. Steps within a known ``tail`` are
    inverted in closed form.

    Returns:
        The points at the largest sigma, ``(N,)``, the log slope of the flow down from there, ``(N,)``, and whether
        every step was inverted, ``(N,)``.
    """
    rows = torch.arange(len(x), device=x.device)
    log_slope, converged = torch.zeros_like(x), torch.ones_like(x, dtype=torch.bool)
    if len(path) < 2:
        return x, log_slope, converged
    tolerance = max(tolerance, _MIN_TOLERANCE * torch.finfo(x.dtype).eps)
    history = [(math.log(path[-1]), _velocity(score, x, rows, path[-1]))]
    for high, low in reversed(list(itertools.pairwise(path))):
        start = x + _adams_bashforth(history, math.log(high))
        x, step_log_slope, velocity, step_converged = (
            _step_up(score, x, start, rows, high, low, tolerance)
            if tail is None
            else _step_up_with_tail(score, x, start, rows, high, low, tolerance, tail)
        )
        history = [*history, (math.log(high), velocity)][-_ADAMS_BASHFORTH_ORDER:]
        log_slope, converged = log_slope + step_log_slope, converged & step_converged
    return x, log_slope, converged


def _heun(score: LevelScore, x: Tensor, rows: Tensor, high: float, low: float) -> Step:
    """Take one Heun step from ``high`` to ``low`` and differentiate it."""
    h = low - high
    s_high, ds = score(x, rows, high)
    first, first_slope = -high * s_high, -high * ds
    s_low, ds = score(x + h * first, rows, low)
    second, second_slope = -low * s_low, -low * ds * (1.0 + h * first_slope)
    slope = 1.0 + 0.5 * h * (first_slope + second_slope)
    correction = 0.5 * h * (second - first)  # from the Euler step to the Heun step
    return Step(x + h * first + correction, slope, s_high - slope * (s_low + ds * correction), high * first)


def _velocity(score: LevelScore, x: Tensor, rows: Tensor, sigma: float) -> Tensor:
    return -(sigma**2) * score(x, rows, sigma)[0]


def _adams_bashforth(history: Sequence[tuple[float, Tensor]], to: float) -> Tensor:
    """Return the displacement from the last log sigma of ``(log sigma, velocity)`` pairs to another one.

    It is the integral of the polynomial that interpolates the velocities.
    """
    times = torch.tensor([time - history[-1][0] for time, _ in history], dtype=torch.float64)
    powers = torch.arange(len(history), dtype=torch.float64)
    integrals = (to - history[-1][0]) ** (powers + 1.0) / (powers + 1.0)
    weights = torch.linalg.solve(times[None, :] ** powers[:, None], integrals).tolist()
    return torch.stack([weight * velocity for weight, (_, velocity) in zip(weights, history, strict=True)]).sum(0)


def _step_down(
    score: LevelScore, x: Tensor, rows: Tensor, high: float, low: float, depth: int = 0
) -> tuple[Tensor, Tensor]:
    """Step down and return the log slope too; a step that would fold is split in two."""
    moved, slope, _, _ = _heun(score, x, rows, high, low)
    folded = slope <= 0.0
    if depth < _MAX_REFINEMENTS and bool(folded.any()):
        middle = math.sqrt(high * low)
        half, first = _step_down(score, x[folded], rows[folded], high, middle, depth + 1)
        moved[folded], second = _step_down(score, half, rows[folded], middle, low, depth + 1)
        slope[folded] = torch.exp(first + second)
    return moved, torch.log(slope.clamp(min=torch.finfo(slope.dtype).tiny))


def _step_up_with_tail(
    score: LevelScore,
    x: Tensor,
    start: Tensor,
    rows: Tensor,
    high: float,
    low: float,
    tolerance: float,
    tail: TailOf,
) -> Inverse:
    """Step up like :func:`_step_up`, but in closed form where the whole step lies within the tail."""
    inverse, within = _tail_step_up(x, high, low, tail)
    near = ~within
    if bool(near.any()):
        found = _step_up(score, x[near], start[near], rows[near], high, low, tolerance)
        inverse = Inverse(*(part.index_put((near,), value) for part, value in zip(inverse, found, strict=True)))
    return inverse


def _tail_step_up(x: Tensor, high: float, low: float, tail: TailOf) -> tuple[Inverse, Tensor]:
    """Invert a Heun step within the tail, and return also whether it starts and ends there, ``(n,)``.

    For a score :math:`-p x`, the slope :math:`\\sigma p` of :math:`f` is constant and the step a multiplication.
    """
    upper, lower, h = tail(high), tail(low), low - high
    first = high * upper.precision
    euler = 1.0 + h * first
    factor = 1.0 + 0.5 * h * (first + low * lower.precision * euler)
    if factor <= 0.0:
        return Inverse(x, x, x, torch.zeros_like(x, dtype=torch.bool)), torch.zeros_like(x, dtype=torch.bool)
    y = x / factor
    within = (y.abs() >= upper.start) & ((euler * y).abs() >= lower.start)
    log_slope = torch.full_like(x, math.log(factor))
    return Inverse(y, log_slope, high * first * y, torch.ones_like(within)), within


def _step_up(
    score: LevelScore, x: Tensor, start: Tensor, rows: Tensor, high: float, low: float, tolerance: float, depth: int = 0
) -> Inverse:
    """Find the points that a step down carries to ``x``, from initial guesses ``start``; see :func:`_step_down`."""
    inverse = _invert(lambda z, part: _heun(score, z, rows[part], high, low), x, start, tolerance, low, 2.0 * high)
    failed = ~inverse.converged
    if depth < _MAX_REFINEMENTS and bool(failed.any()):
        part, middle = rows[failed], math.sqrt(high * low)
        start = x[failed] + math.log(middle / low) * _velocity(score, x[failed], part, low)
        lower = _step_up(score, x[failed], start, part, middle, low, tolerance, depth + 1)
        start = lower.x + math.log(high / middle) * _velocity(score, lower.x, part, middle)
        upper = _step_up(score, lower.x, start, part, high, middle, tolerance, depth + 1)
        inverse.x[failed], inverse.velocity[failed] = upper.x, upper.velocity
        inverse.log_slope[failed] = upper.log_slope + lower.log_slope
        inverse.converged[failed] = upper.converged & lower.converged
    return inverse


def _invert(
    function: Callable[[Tensor, Tensor], Step], target: Tensor, y: Tensor, tolerance: float, scale: float, limit: float
) -> Inverse:
    """Solve ``function(y).x = target`` for an increasing function by Newton steps within a shrinking bracket.

    Bisection replaces a Newton step that leaves the bracket or is more than half as long as the step before. On an
    S-shaped map, Newton steps alone would jump from one flat side to the other forever. Before there is a bracket,
    steps may grow. The last Newton step is shorter than the tolerance (times ``scale``), changes the log slope by less
    than the tolerance, and is not evaluated again.
    """
    eps, tiny = 8.0 * torch.finfo(y.dtype).eps, torch.finfo(y.dtype).tiny
    solution, log_slopes, velocities = y.clone(), torch.zeros_like(y), torch.zeros_like(y)
    converged = torch.zeros_like(y, dtype=torch.bool)
    active = torch.arange(len(y), device=y.device)
    low, high = torch.full_like(y, -math.inf), torch.full_like(y, math.inf)
    previous_length = torch.full_like(y, math.inf)
    longest = (_FAR_STEP * target.abs()).clamp(min=limit)  # one for each row: rows do not depend on their batch
    for _ in range(_NEWTON_ITERATIONS):
        value, slope, log_slope_derivative, velocity = function(y, active)
        excess = value - target
        newton = -excess / slope.clamp(min=1e-12)
        last = torch.where(slope > 0.0, newton, math.inf)
        rounding = eps * torch.maximum(target.abs(), y.abs())
        close = excess.abs().maximum(last.abs()) <= tolerance * scale + rounding
        change = log_slope_derivative * last
        done = close & (change.abs() <= tolerance + log_slope_derivative.abs() * rounding)
        is_lost = excess.isnan()
        solution[active] = torch.where(done, y + last, torch.where(is_lost, torch.nan, y))
        velocities[active], converged[active] = velocity, done
        log_slopes[active] = torch.log(slope.clamp(min=tiny)) + torch.where(done, change, 0.0)
        keep = ~(done | is_lost)
        if not bool(keep.any()):
            break
        low, high = torch.where(excess < 0, y, low), torch.where(excess > 0, y, high)
        step = torch.where(slope > 0, newton, -excess.sign() * longest)
        new = y + step.clamp(-longest, longest)
        accepted = (new > low) & (new < high) & (step.abs() <= 0.5 * previous_length)
        bracketed = low.isfinite() & high.isfinite()
        new = torch.where(accepted | ~bracketed, new, 0.5 * (low + high))
        longest = torch.where(bracketed, longest, 2.0 * longest)
        previous_length = torch.where(bracketed, (new - y).abs(), math.inf)[keep]
        active, y, target = active[keep], new[keep], target[keep]
        low, high, longest = low[keep], high[keep], longest[keep]
    return Inverse(solution, log_slopes, velocities, converged)
