"""The probability-flow ODE of one-dimensional conditionals, followed up and down the noise levels.

The flow :math:`dx / d\\sigma = -\\sigma\\, s_\\sigma(x)` carries the conditionals at one noise level to those at any
other. In units of the base Gaussian's width, :math:`y = x / w_\\sigma` with :math:`w_\\sigma^2 = \\sigma^2 + \\tau^2`,
only what sets the score apart from the base Gaussian moves a point, so that tails stand still. With
:math:`t = \\log(\\sigma + \\sigma_c)`,

.. math:: \\frac{dy}{dt} = -\\sigma (\\sigma + \\sigma_c) \\frac{s_\\sigma(x) + x / w_\\sigma^2}{w_\\sigma}, \\qquad
    \\frac{d}{dt} \\log \\frac{dy}{dy_0} = -\\sigma (\\sigma + \\sigma_c)
    \\big(\\partial_x s_\\sigma(x) + 1 / w_\\sigma^2\\big)

A multistep method of fourth order takes one evaluation of score and derivative a step: Adams-Bashforth predicts the
point, where the score is evaluated, and Adams-Moulton corrects it. The distance between the two tells how accurate the
step is. Points whose steps are too long are followed again by shorter ones. Only points near a boundary between modes,
where the flow is fast, need many.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021), Section 4.3
    Solving Ordinary Differential Equations I (Hairer, Norsett and Wanner, 1993), Section III.1
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from arcsm._native import Step

#: ``score(x, sigma)`` maps values ``(n,)`` to scores and derivatives, ``(n,)`` each; it may leave out the latter.
LevelScore = Callable[[Tensor, float], tuple[Tensor, Tensor | None]]

_ORDER = 4
_STEP, _STEP_TOLERANCE = 0.2, 1e-3  # length of the first steps in t, and for which tolerance
_LONGEST_STEP = 0.28  # at which errors still fall with the fourth power
_OFFSET = 0.02  # sigma_c, in data_std: far below the width of most conditionals, the flow stands nearly still
_REFINEMENT = 1.5  # ratio of the lengths of steps from one attempt to the next
_MAX_REFINEMENTS = 4  # from one attempt to the next
_ESTIMATE = 70.0  # estimated over actual errors of log densities
_SECOND_ATTEMPT = 4  # of the points that need it, if the host looks once
_ONLY_ATTEMPT = 1  # of all points, if it never looks
_MIN_TOLERANCE = 128.0  # in units of the rounding error
_ROUNDING = 32.0  # the same, of a point


class Carried(NamedTuple):
    """Where the flow carries points, ``(N,)`` each."""

    x: Tensor
    log_slope: Tensor  # of the map, at the points; not a number without derivatives
    converged: Tensor  # whether the estimated error is within the tolerance
    near: Tensor  # close to x
    score: Tensor  # there, at the last noise level
    derivative: Tensor  # the same


#: ``solve(rows, y, steps, rounding)`` carries points ``y (n,)`` of the conditionals ``rows (n,)``; see :func:`_solve`.
Solver = Callable[[Tensor, Tensor, Sequence[Step], float], tuple[Carried, Tensor]]


def follow(
    scores: Callable[[Tensor], LevelScore],
    x: Tensor,
    path: Sequence[float],
    tolerance: float,
    data_std: float = 1.0,
    tail: float = math.inf,
    max_evaluations: int = 512,
    solver: Solver | None = None,
    looks: int | None = None,
) -> Carried:
    """Carry points from the first noise level of a path to the last one, up or down.

    Arguments:
        scores: Returns the scores of the conditionals ``rows (n,)``. Without derivatives, there are no slopes.
        x: Points, ``(N,)``.
        path: Noise levels. The flow visits all of them, with steps between two as short as the tolerance asks.
        tolerance: Of the error of a log density, in nats.
        data_std: Standard deviation :math:`\\tau` of the base Gaussian without noise.
        tail: Distance from zero, in widths of the base Gaussian, beyond which the conditionals equal it.
        max_evaluations: Largest number of evaluations for one point and attempt. Points that need more have not
            converged.
        solver: Takes the steps in place of torch.
        looks: How often the host looks at the errors, to follow again what needs it: 0, 1, or whenever useful. If
            never, all points take slightly shorter steps, and no shape depends on values.
    """
    first, last = (math.hypot(sigma, data_std) for sigma in (path[0], path[-1]))
    y = x / first
    found = Carried(
        y.clone(), torch.zeros_like(y), torch.ones_like(y, dtype=torch.bool), y * last, -y / last,
        torch.full_like(y, -(last**-2)),
    )  # fmt: skip
    if len(path) < 2:
        s, ds = scores(torch.arange(len(x), device=x.device))(x, path[-1])
        return found._replace(x=x, near=x, score=s, derivative=torch.full_like(s, math.nan) if ds is None else ds)
    eps = torch.finfo(x.dtype).eps
    tolerance, rounding = max(tolerance, _MIN_TOLERANCE * eps), _ROUNDING * eps
    path, offset = tuple(path), _OFFSET * data_std
    lengths = _lengths(path, tolerance, offset, max_evaluations)

    def attempt(number: int, rows: Tensor) -> Tensor:
        """Follow some points and return their errors, ``(n,)``."""
        schedule = _schedule(path, lengths[number], offset)
        part, error = (
            _solve(scores(rows), y[rows], schedule, data_std, rounding)
            if solver is None
            else solver(rows, y[rows], schedule, rounding)
        )
        error = error / _ESTIMATE
        for whole, values in zip(found, part, strict=True):
            whole[rows] = values
        found.converged[rows] = error <= tolerance
        return error

    inside, last_attempt = y.abs() < tail, len(lengths) - 1
    if looks is None:
        _refine_where_needed(attempt, torch.where(inside, 0, -1), last_attempt, tolerance)
        return found._replace(x=found.x * last, log_slope=found.log_slope + math.log(last / first))
    outside = Carried(*(values.clone() for values in found))
    attempt(0 if looks else min(_ONLY_ATTEMPT, last_attempt), torch.arange(len(y), device=y.device))
    if looks and len(rows := (inside & ~found.converged).nonzero()[:, 0]):
        attempt(min(_SECOND_ATTEMPT, last_attempt), rows)
    found = Carried(*(torch.where(inside, *both) for both in zip(found, outside, strict=True)))
    return found._replace(x=found.x * last, log_slope=found.log_slope + math.log(last / first))


def _refine_where_needed(
    attempt: Callable[[int, Tensor], Tensor], following: Tensor, last: int, tolerance: float
) -> None:
    """Make the attempts that each point needs; ``following (N,)`` is the number of the next, or -1 for none."""
    for number in range(last + 1):
        rows = (following == number).nonzero()[:, 0]
        if not len(rows):
            continue
        error = attempt(number, rows)
        shorter = torch.log(error / tolerance) / (_ORDER * math.log(_REFINEMENT))
        numbers = (number + shorter.ceil().clamp(1, _MAX_REFINEMENTS)).clamp(max=max(number + 1, last))
        following[rows] = torch.where(error > tolerance, numbers, -1.0).long()


def _solve(
    score: LevelScore, y: Tensor, steps: Sequence[Step], data_std: float, rounding: float
) -> tuple[Carried, Tensor]:
    """Take steps with points ``y (n,)``, which stay in units of the widths of the base Gaussian.

    Return also the sum of the distances between predicted and corrected points, as errors of a log density in nats.
    Distances up to ``rounding``, relative to the points, do not count.
    """
    start, error = y, torch.zeros_like(y)
    log_slope = derivative = torch.full_like(y, math.nan)
    velocities: list[Tensor] = []
    rates: list[Tensor] = []
    for step in steps:
        width = math.hypot(step.sigma, data_std)
        predicted = y + _weighted(step.predictor, velocities) if step.predictor else y
        near = predicted * width
        s, ds = score(near, step.sigma)
        velocities = [*velocities[1 - _ORDER :], torch.add(s, near, alpha=width**-2) * (-step.speed / width)]
        if step.corrector:
            y = (start if step.from_start else y) + _weighted(step.corrector, velocities)
            distance = ((y - predicted).abs() - rounding * y.abs()).clamp(min=0.0) * (width / step.sigma)
            error = error + distance
        if ds is not None:
            derivative, rates = ds, [*rates[1 - _ORDER :], (ds + width**-2) * -step.speed]
            if step.corrector:
                log_slope = (0.0 if step.from_start else log_slope) + _weighted(step.corrector, rates)
                error = error + distance * rates[-1].abs() * (step.sigma**2 / step.speed)
    return Carried(y, log_slope, error <= math.inf, near, s, derivative), error


def _weighted(weights: tuple[float, ...], values: Sequence[Tensor]) -> Tensor:
    """Return the sum of the last values, times the weights."""
    total = weights[0] * values[-len(weights)]
    for weight, value in zip(weights[1:], values[len(values) - len(weights) + 1 :], strict=True):
        total = torch.add(total, value, alpha=weight)
    return total


def _lengths(path: tuple[float, ...], tolerance: float, offset: float, max_evaluations: int) -> list[float]:
    """Return the lengths of steps to try: that of one attempt at least, and no more steps than evaluations."""
    length = min(_STEP * (tolerance / _STEP_TOLERANCE) ** (1.0 / _ORDER), _LONGEST_STEP)
    lengths = [length]
    while sum(_counts(path, length / _REFINEMENT, offset)) + 2 <= max_evaluations:
        length /= _REFINEMENT
        lengths.append(length)
    return lengths


def _counts(path: tuple[float, ...], length: float, offset: float) -> list[int]:
    """Return the number of steps from each noise level to the next."""
    places = [math.log(sigma + offset) for sigma in path]
    return [math.ceil(abs(high - low) / length - 1e-9) for low, high in itertools.pairwise(places)]


@functools.lru_cache(maxsize=256)
def _schedule(path: tuple[float, ...], length: float, offset: float) -> tuple[Step, ...]:
    """Return steps of at most some length in t, which visit all noise levels of a path.

    The first step has no history and thus a low order, so it is halved, if the path leaves room for that.
    """
    places = [math.log(sigma + offset) for sigma in path]
    times = [places[0]]
    for low, high, count in zip(places, places[1:], _counts(path, length, offset), strict=False):
        between = [low + (high - low) * i / count for i in range(1, count)]
        if len(times) == 1 and count > 1:
            between.insert(0, 0.5 * (low + between[0]))
        times += [*between, high]
    sigmas = [math.exp(t) - offset for t in times]
    sigmas[0], sigmas[-1] = path[0], path[-1]
    return tuple(
        Step(
            sigma,
            sigma * (sigma + offset),
            _weights(times[max(0, i - _ORDER) : i], times[i - 1], t) if i else (),
            _weights(times[max(0, i + 1 - _ORDER) : i + 1], times[0 if i < _ORDER else i - 1], t) if i else (),
            i < _ORDER,
        )
        for i, (sigma, t) in enumerate(zip(sigmas, times, strict=True))
    )


def _weights(times: Sequence[float], start: float, end: float) -> tuple[float, ...]:
    """Return weights of values at some times whose sum is the integral of their polynomial from start to end."""
    length = end - start
    offsets, powers = (np.array(times) - start) / length, np.arange(len(times))
    return tuple((length * np.linalg.solve(offsets ** powers[:, None], 1.0 / (powers + 1.0))).tolist())
