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

import torch
from torch import Tensor

#: ``score(x, rows, sigma)``: values ``(n,)`` of the conditionals ``rows (n,)`` to score and derivative, ``(n,)``.
LevelScore = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]

_RELATIVE_TOLERANCE = 1e-5  # of sigma; single precision resolves about 1e-6 of it
_NEWTON_ITERATIONS = 60
_DEEPEST_REFINEMENT = 4  # a step that folds is cut in two at most this many times over


def flow_down(score: LevelScore, x: Tensor, path: Sequence[float]) -> Tensor:
    """Carry ``x (N,)`` from the largest sigma of the path to the smallest."""
    rows = torch.arange(len(x), device=x.device)
    for high, low in itertools.pairwise(path):
        x, _ = _step_down(score, x, rows, high, low)
    return x


def flow_up(score: LevelScore, x: Tensor, path: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Carry ``x (N,)`` from the smallest sigma of the path to the largest: the inverse of :func:`flow_down`.

    Returns:
        Where the points come from at the largest sigma, ``(N,)``, and the log slope of the flow down there, ``(N,)``.
    """
    rows = torch.arange(len(x), device=x.device)
    log_slope = torch.zeros_like(x)
    for high, low in reversed(list(itertools.pairwise(path))):
        x, step = _step_up(score, x, rows, high, low)
        log_slope = log_slope + step
    return x, log_slope


def _heun(score: LevelScore, x: Tensor, rows: Tensor, high: float, low: float) -> tuple[Tensor, Tensor]:
    """One Heun step of dx/dsigma = -sigma s from ``high`` to ``low``, and its slope by x."""
    step = low - high
    s, ds = score(x, rows, high)
    first, first_slope = -high * s, -high * ds
    s, ds = score(x + step * first, rows, low)
    second, second_slope = -low * s, -low * ds * (1.0 + step * first_slope)
    return x + 0.5 * step * (first + second), 1.0 + 0.5 * step * (first_slope + second_slope)


def _step_down(
    score: LevelScore, x: Tensor, rows: Tensor, high: float, low: float, depth: int = 0
) -> tuple[Tensor, Tensor]:
    """A step down and its log slope; where it would fold, two steps of half the length."""
    moved, slope = _heun(score, x, rows, high, low)
    folded = slope <= 0.0
    if depth < _DEEPEST_REFINEMENT and bool(folded.any()):
        middle = math.sqrt(high * low)
        half, first = _step_down(score, x[folded], rows[folded], high, middle, depth + 1)
        moved[folded], second = _step_down(score, half, rows[folded], middle, low, depth + 1)
        slope[folded] = torch.exp(first + second)
    return moved, torch.log(slope.clamp(min=torch.finfo(slope.dtype).tiny))


def _step_up(
    score: LevelScore, x: Tensor, rows: Tensor, high: float, low: float, depth: int = 0
) -> tuple[Tensor, Tensor]:
    """The point that a step down carries to ``x``, and the log slope of that step there."""
    y, slope, solved = _invert(
        lambda z, some: _heun(score, z, rows[some], high, low), x, *_start(score, x, rows, high, low)
    )
    failed = ~solved | (slope <= 0.0)
    if depth < _DEEPEST_REFINEMENT and bool(failed.any()):
        middle = math.sqrt(high * low)
        half, second = _step_up(score, x[failed], rows[failed], middle, low, depth + 1)
        y[failed], first = _step_up(score, half, rows[failed], high, middle, depth + 1)
        slope[failed] = torch.exp(first + second)
    return y, torch.log(slope.clamp(min=torch.finfo(slope.dtype).tiny))


def _start(score: LevelScore, x: Tensor, rows: Tensor, high: float, low: float) -> tuple[Tensor, float, float]:
    """First guess of the point above ``x`` (an Euler step), the accuracy wanted and the longest Newton step."""
    s, _ = score(x, rows, low)
    return x + (low - high) * low * s, _RELATIVE_TOLERANCE * low, 2.0 * high


def _invert(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    target: Tensor,
    y: Tensor,
    tolerance: float,
    longest: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve ``function(y) = target`` for an increasing function by Newton steps within a shrinking bracket.

    A Newton step that leaves the bracket, or that is more than half as long as the one before, gives way to
    bisection: on an S-shaped map Newton steps alone would jump from one flat side to the other for ever. Until there
    is a bracket, steps may get ever longer.

    Returns:
        The solutions, the slopes there and whether each was found, ``(N,)`` each.
    """
    solution, slopes = y.clone(), torch.ones_like(y)
    solved = torch.zeros_like(y, dtype=torch.bool)
    active = torch.arange(len(y), device=y.device)
    low, high = torch.full_like(y, -math.inf), torch.full_like(y, math.inf)
    before = torch.full_like(y, math.inf)  # length of the last step
    for _ in range(_NEWTON_ITERATIONS):
        value, slope = function(y, active)
        excess = value - target
        found = excess.abs() <= tolerance + 4.0 * torch.finfo(y.dtype).eps * target.abs()
        solution[active], slopes[active], solved[active] = y, slope, found
        if bool(found.all()):
            break
        low, high = torch.where(excess < 0, y, low), torch.where(excess > 0, y, high)
        step = torch.where(slope > 0, -excess / slope.clamp(min=1e-12), -excess.sign() * longest)
        new = y + step.clamp(-longest, longest)
        newton = (new > low) & (new < high) & (step.abs() <= 0.5 * before)
        bracketed = low.isfinite() & high.isfinite()
        new = torch.where(newton | ~bracketed, new, 0.5 * (low + high))
        longest = longest if bool(bracketed.all()) else 2.0 * longest
        keep = ~found
        before = torch.where(bracketed, (new - y).abs(), math.inf)[keep]
        active, y, target = active[keep], new[keep], target[keep]
        low, high = low[keep], high[keep]
    return solution, slopes, solved
