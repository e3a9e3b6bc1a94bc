"""The noise ladder as a one-dimensional normalising flow, exact in both directions.

Down the ladder, :math:`dx / d\\sigma = -\\sigma\\, s_\\sigma(x)` is followed by Heun steps. A true score has
:math:`s' \\ge -1/\\sigma^2`, so that a step down to not less than half the sigma is increasing in x whatever the
density: an invertible map. (The same steps upwards would not be: between two modes they fold.) So a step *down*
defines the flow and a step *up* inverts it by safeguarded Newton iterations, the slope being at hand in closed form.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: ``score(x, rows, sigma)``: values ``(n,)`` of the conditionals ``rows (n,)`` to score and derivative, ``(n,)``.
LevelScore = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]

TOLERANCE = 1e-4  #: of the inversion of a step, in sigmas and in nats, before a last Newton step
_LEAST_TOLERANCE = 128.0  # by the rounding of a number, below which it would decide
_NEWTON_ITERATIONS = 60
_DEEPEST_REFINEMENT = 4  # a step that folds is cut in two at most this many times over
_REMEMBERED = 4  # velocities from which the next point is foretold


class Step(NamedTuple):
    """A step down from points at the upper sigma.

    Attributes:
        moved: Where it leads, ``(n,)``.
        slope: Of that by the points, ``(n,)``.
        bend: Of the slope's logarithm by the points, ``(n,)``: were the scores those of the density that the step
            carries down, it would be just what carries its log density along.
        velocity: :math:`dx / d\\log\\sigma = -\\sigma^2 s` at the points, ``(n,)``.
    """

    moved: Tensor
    slope: Tensor
    bend: Tensor
    velocity: Tensor


class Solution(NamedTuple):
    """Points at the upper sigma of a step that leads to given ones; see :class:`Step`.

    Attributes:
        x: The points, ``(n,)``.
        log_slope: Of the step there, ``(n,)``.
        velocity: Close by, ``(n,)``.
        converged: Whether they were found, and the step increases there, ``(n,)``.
    """

    x: Tensor
    log_slope: Tensor
    velocity: Tensor
    converged: Tensor


def flow_down(score: LevelScore, x: Tensor, path: Sequence[float]) -> Tensor:
    """Carry ``x (N,)`` from the largest sigma of the path to the smallest."""
    rows = torch.arange(len(x), device=x.device)
    for high, low in itertools.pairwise(path):
        x, _ = _step_down(score, x, rows, high, low)
    return x


def flow_up(
    score: LevelScore, x: Tensor, path: Sequence[float], tolerance: float = TOLERANCE
) -> tuple[Tensor, Tensor, Tensor]:
    """Carry ``x (N,)`` from the smallest sigma of the path to the largest: the inverse of :func:`flow_down`.

    Arguments:
        score: The conditionals; see :data:`LevelScore`.
        x: The points.
        path: Sigmas, the largest first.
        tolerance: How far, in sigmas, a step down may lead from where the step up began, before a last Newton step; and
            by how much, in nats, that one may change the log slope without evaluating it again.

    Returns:
        Where the points come from at the largest sigma, ``(N,)``, the log slope of the flow down there, ``(N,)``, and
        whether every step was inverted, ``(N,)``.
    """
    rows = torch.arange(len(x), device=x.device)
    log_slope, converged = torch.zeros_like(x), torch.ones_like(x, dtype=torch.bool)
    if len(path) < 2:
        return x, log_slope, converged
    tolerance = max(tolerance, _LEAST_TOLERANCE * torch.finfo(x.dtype).eps)
    history = [(math.log(path[-1]), _velocity(score, x, rows, path[-1]))]
    for high, low in reversed(list(itertools.pairwise(path))):
        start = x + _travelled(history, math.log(high))
        x, step, velocity, found = _step_up(score, x, start, rows, high, low, tolerance)
        history = [*history, (math.log(high), velocity)][-_REMEMBERED:]
        log_slope, converged = log_slope + step, converged & found
    return x, log_slope, converged


def _heun(score: LevelScore, x: Tensor, rows: Tensor, high: float, low: float) -> Step:
    """One Heun step of dx/dsigma = -sigma s from ``high`` to ``low``, and its slope by x."""
    step = low - high
    above, ds = score(x, rows, high)
    first, first_slope = -high * above, -high * ds
    below, ds = score(x + step * first, rows, low)
    second, second_slope = -low * below, -low * ds * (1.0 + step * first_slope)
    slope = 1.0 + 0.5 * step * (first_slope + second_slope)
    shift = 0.5 * step * (second - first)  # from where the lower score was asked for
    return Step(x + step * first + shift, slope, above - slope * (below + ds * shift), high * first)


def _velocity(score: LevelScore, x: Tensor, rows: Tensor, sigma: float) -> Tensor:
    return -(sigma**2) * score(x, rows, sigma)[0]


def _travelled(history: Sequence[tuple[float, Tensor]], to: float) -> Tensor:
    """How far points go from the last of the levels that are known (log sigma, velocity) to another one.

    By the integral of the polynomial through the velocities (an Adams-Bashforth step).
    """
    times = torch.tensor([time - history[-1][0] for time, _ in history], dtype=torch.float64)
    powers = torch.arange(len(history), dtype=torch.float64)
    integrals = (to - history[-1][0]) ** (powers + 1.0) / (powers + 1.0)
    weights = torch.linalg.solve(times[None, :] ** powers[:, None], integrals).tolist()
    return torch.stack([weight * velocity for weight, (_, velocity) in zip(weights, history, strict=True)]).sum(0)


def _step_down(
    score: LevelScore, x: Tensor, rows: Tensor, high: float, low: float, depth: int = 0
) -> tuple[Tensor, Tensor]:
    """A step down and its log slope; where it would fold, two steps of half the length."""
    moved, slope, _, _ = _heun(score, x, rows, high, low)
    folded = slope <= 0.0
    if depth < _DEEPEST_REFINEMENT and bool(folded.any()):
        middle = math.sqrt(high * low)
        half, first = _step_down(score, x[folded], rows[folded], high, middle, depth + 1)
        moved[folded], second = _step_down(score, half, rows[folded], middle, low, depth + 1)
        slope[folded] = torch.exp(first + second)
    return moved, torch.log(slope.clamp(min=torch.finfo(slope.dtype).tiny))


def _step_up(
    score: LevelScore,
    x: Tensor,
    start: Tensor,
    rows: Tensor,
    high: float,
    low: float,
    tolerance: float,
    depth: int = 0,
) -> Solution:
    """The points that a step down carries to ``x``, which may be two steps of half the length where it folds.

    ``start`` is where to look first.
    """
    found = _invert(lambda z, some: _heun(score, z, rows[some], high, low), x, start, tolerance, low, 2.0 * high)
    failed = ~found.converged
    if depth < _DEEPEST_REFINEMENT and bool(failed.any()):
        some, middle = rows[failed], math.sqrt(high * low)
        start = x[failed] + math.log(middle / low) * _velocity(score, x[failed], some, low)
        lower = _step_up(score, x[failed], start, some, middle, low, tolerance, depth + 1)
        start = lower.x + math.log(high / middle) * _velocity(score, lower.x, some, middle)
        upper = _step_up(score, lower.x, start, some, high, middle, tolerance, depth + 1)
        found.x[failed], found.velocity[failed] = upper.x, upper.velocity
        found.log_slope[failed] = upper.log_slope + lower.log_slope
        found.converged[failed] = upper.converged & lower.converged
    return found


def _invert(
    function: Callable[[Tensor, Tensor], Step],
    target: Tensor,
    y: Tensor,
    tolerance: float,
    scale: float,
    longest: float,
) -> Solution:
    """Solve ``function(y).moved = target`` for an increasing function by Newton steps within a shrinking bracket.

    A Newton step that leaves the bracket, or that is more than half as long as the one before, gives way to
    bisection: on an S-shaped map Newton steps alone would jump from one flat side to the other for ever. Until there
    is a bracket, steps may get ever longer. Once a Newton step is shorter than the tolerance (times ``scale``) and
    changes the log slope by less than it, it is taken on trust.
    """
    eps = 8.0 * torch.finfo(y.dtype).eps
    solution, log_slopes, velocities = y.clone(), torch.zeros_like(y), torch.zeros_like(y)
    converged = torch.zeros_like(y, dtype=torch.bool)
    active = torch.arange(len(y), device=y.device)
    low, high = torch.full_like(y, -math.inf), torch.full_like(y, math.inf)
    before = torch.full_like(y, math.inf)  # length of the last step
    reach = torch.full_like(y, longest)  # of the next one, for each row: rows do not depend on their batch
    for _ in range(_NEWTON_ITERATIONS):
        value, slope, bend, velocity = function(y, active)
        excess = value - target
        last = torch.where(slope > 0.0, -excess / slope.clamp(min=1e-12), math.inf)
        rounding = eps * torch.maximum(target.abs(), y.abs())
        close = excess.abs().maximum(last.abs()) <= tolerance * scale + rounding
        found = close & ((bend * last).abs() <= tolerance + bend.abs() * rounding)
        solution[active], velocities[active], converged[active] = torch.where(found, y + last, y), velocity, found
        log_slopes[active] = torch.log(slope.clamp(min=torch.finfo(y.dtype).tiny)) + torch.where(
            found, bend * last, 0.0
        )
        if bool(found.all()):
            break
        low, high = torch.where(excess < 0, y, low), torch.where(excess > 0, y, high)
        step = torch.where(slope > 0, -excess / slope.clamp(min=1e-12), -excess.sign() * reach)
        new = y + step.clamp(-reach, reach)
        newton = (new > low) & (new < high) & (step.abs() <= 0.5 * before)
        bracketed = low.isfinite() & high.isfinite()
        new = torch.where(newton | ~bracketed, new, 0.5 * (low + high))
        reach = torch.where(bracketed, reach, 2.0 * reach)
        keep = ~found
        before = torch.where(bracketed, (new - y).abs(), math.inf)[keep]
        active, y, target = active[keep], new[keep], target[keep]
        low, high, reach = low[keep], high[keep], reach[keep]
    return Solution(solution, log_slopes, velocities, converged)
