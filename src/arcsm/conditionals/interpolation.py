"""Log densities at a large noise level from the scores at a few fixed nodes.

Where the noise is wider than the data, the score differs from that of the base Gaussian of width :math:`w` by a smooth
residual :math:`r(x) = s(x) + x / w^2`. A polynomial through its values at Chebyshev nodes, constant beyond these, gives

.. math:: \\log q(x) = \\int_0^x r - \\frac{x^2}{2 w^2} - \\log Z, \\qquad
    Z = \\int \\exp\\Big(\\int_0^x r - \\frac{x^2}{2 w^2}\\Big) dx

The integral of :math:`r` is a Chebyshev series, whose last coefficients tell how accurate it is, and :math:`Z` a sum
over a uniform grid (the trapezoidal rule, which converges exponentially). Both are products of the residuals and fixed
matrices. No derivative of the score is needed.

References:
    Approximation Theory and Approximation Practice (Trefethen, 2013), Chapters 8 and 19
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from arcsm._native import Interpolation

_HALF_RANGE = 2.8  # of the nodes, in widths of the base Gaussian
_GRID, _HALF_GRID = 24, 5.0  # points of the sum, and how far from zero they go, in the same widths
_MIN_TOLERANCE = 5e-4  # nats; constant residuals beyond the nodes cause errors of 1e-4
_MIN_NOISE = 1.4  # in standard deviations of the data
_NODES = ((5e-3, 8), (_MIN_TOLERANCE, 10))  # least tolerance, and nodes; networks are less smooth than mixtures


class Interpolated(NamedTuple):
    """Log densities in nats and their estimated errors, infinite beyond the nodes, ``(N,)`` each."""

    log_prob: Tensor
    error: Tensor


def interpolation(sigma: float, data_std: float, tolerance: float) -> Interpolation | None:
    """Return an interpolation that is usually within the tolerance, or None if no small number of nodes is."""
    if sigma < _MIN_NOISE * data_std:
        return None
    return next((through(sigma, data_std, count) for least, count in _NODES if tolerance >= least), None)


@functools.lru_cache(maxsize=64)
def through(sigma: float, data_std: float, count: int) -> Interpolation:
    """Return the interpolation through some number of nodes."""
    width = math.hypot(sigma, data_std)
    half_range = _HALF_RANGE * width
    places = -np.cos(np.pi * (np.arange(count) + 0.5) / count)  # the zeros of a Chebyshev polynomial
    coefficients = np.linalg.inv(chebyshev.chebvander(places, count - 1))
    series = half_range * chebyshev.chebint(coefficients, axis=0)
    grid = np.linspace(-_HALF_GRID, _HALF_GRID, _GRID) * width
    inside = np.clip(grid, -half_range, half_range)
    beyond = (grid - inside)[:, None] * chebyshev.chebvander(inside / half_range, count - 1)
    energy = chebyshev.chebvander(inside / half_range, count) @ series + beyond @ coefficients
    base = -0.5 * (grid / width) ** 2 + math.log(grid[1] - grid[0])
    nodes, *matrices = (torch.from_numpy(values) for values in (half_range * places, series, energy, base))
    return Interpolation(nodes, half_range, *matrices)


def interpolate(
    score: Callable[[Tensor], Tensor], x: Tensor, sigma: float, data_std: float, nodes: Interpolation
) -> Interpolated:
    """Return log densities at ``x (N,)``, given the ``score`` of the conditionals at points ``(K, N)``."""
    precision = 1.0 / (sigma**2 + data_std**2)
    points, series, energy, base = (t.to(x) for t in (nodes.nodes, nodes.series, nodes.energy, nodes.base))
    points = points[:, None]
    residuals = score(points.expand(-1, len(x))) + precision * points
    coefficients = series @ residuals
    log_mass = torch.logsumexp(energy @ residuals + base[:, None], 0)
    u = x / nodes.half_range
    log_prob = _chebyshev_sum(coefficients, u) - 0.5 * precision * x.square() - log_mass
    return Interpolated(log_prob, torch.where(u.abs() <= 1.0, 0.5 * coefficients[-2:].abs().sum(0), math.inf))


def of_compiled(found: Tensor) -> Interpolated:
    """Return what C returns, unnormalised log densities, masses and errors ``(3, N)``, as log densities and errors."""
    energy, mass, error = found
    return Interpolated(energy - torch.log(mass), error)


def _chebyshev_sum(coefficients: Tensor, u: Tensor) -> Tensor:
    """Return a series with coefficients ``(K, N)`` at places ``(N,)``, by Clenshaw's recurrence."""
    later, last = torch.zeros_like(u), coefficients[-1]
    for coefficient in coefficients[1:-1].flip(0):
        later, last = last, coefficient + 2.0 * u * last - later
    return coefficients[0] + u * last - later
