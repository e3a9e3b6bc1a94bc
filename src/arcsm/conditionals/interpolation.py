"""Densities and distribution functions at a large noise level from the scores at a few fixed nodes.

Where the noise is wider than the data, the score differs from that of the base Gaussian of width :math:`w` by a smooth
residual :math:`r(x) = s(x) + x / w^2`. A polynomial through its values at Chebyshev nodes, constant beyond these, gives
the log density up to a constant, and the masses below and above a point give that:

.. math:: E(x) = \\int_0^x r - \\frac{x^2}{2 w^2}, \\qquad
    \\frac{1}{q(x)} = \\int e^{E(z) - E(x)} dz, \\qquad \\frac{F(x)}{q(x)} = \\int_{-\\infty}^x e^{E(z) - E(x)} dz

The integral of :math:`r` is a Chebyshev series, whose coefficients are linear in the residuals. The masses follow by
Gauss-Legendre rules, without another score. No derivative of the score is needed. The estimated error has three terms:
the last coefficients, the change of the masses if the residuals continue with their slopes beyond the nodes, and the
mass that the rules leave out.

References:
    Approximation Theory and Approximation Practice (Trefethen, 2013), Chapters 8 and 19
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from arcsm._native import Interpolation

_HALF_RANGE = 2.8  # of the nodes, in widths of the base Gaussian
_REACH, _POINTS = 5.5, 16  # of the masses, in the same widths, and points of each
_MIN_TOLERANCE = 5e-4  # nats; with constant residuals beyond the nodes, even centred conditionals have errors of 1e-4
_MIN_NOISE = 1.4  # in standard deviations of the data
_NODES = ((5e-3, 8), (_MIN_TOLERANCE, 10))  # least tolerance, and nodes; networks are less smooth than mixtures


class Interpolated(NamedTuple):
    """The masses below and above points ``x (N,)`` over the densities there, ``(N,)`` each."""

    below: Tensor
    above: Tensor
    error: Tensor  # of the log density, estimated; infinite beyond the nodes

    def log_prob(self) -> Tensor:
        """Return the log density in nats, ``(N,)`` in double precision."""
        return -torch.log(self.below.double() + self.above)

    def cdf(self) -> Tensor:
        """Return the distribution function, ``(N,)`` in double precision, which it needs close to one."""
        below = self.below.double()
        return below / (below + self.above)


def interpolation(sigma: float, data_std: float, tolerance: float) -> Interpolation | None:
    """Return an interpolation that is usually within the tolerance, or None if none of few nodes is."""
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
    ends = chebyshev.chebvander(np.array([-1.0, 1.0]), count - 1) @ coefficients
    slopes = chebyshev.chebval(np.array([-1.0, 1.0]), chebyshev.chebder(coefficients, axis=0)).T / half_range
    points, weights = np.polynomial.legendre.leggauss(_POINTS)
    arrays = half_range * places, np.concatenate([series, ends, slopes]), 0.5 + 0.5 * points, 0.5 * weights
    nodes, sums, shares_of_way, shares = map(torch.from_numpy, arrays)
    return Interpolation(nodes, half_range, sums, _REACH * width, shares_of_way, shares)


def interpolate(
    score: Callable[[Tensor], Tensor], x: Tensor, sigma: float, data_std: float, nodes: Interpolation
) -> Interpolated:
    """Return the masses around ``x (N,)``, given the ``score`` of the conditionals at points ``(K, N)``."""
    precision = 1.0 / (sigma**2 + data_std**2)
    points, sums, places, shares = (t.to(x) for t in (nodes.nodes, nodes.sums, nodes.places, nodes.shares))
    residuals = score(points[:, None].expand(-1, len(x))) + precision * points[:, None]
    *series, left, right, left_slope, right_slope = sums @ residuals

    def beyond(at: Tensor) -> Tensor:
        return at - at.clamp(-nodes.half_range, nodes.half_range)

    def energy(at: Tensor) -> Tensor:
        inside = (at / nodes.half_range).clamp(-1.0, 1.0)
        line = beyond(at) * torch.where(at < 0.0, left, right)
        return _chebyshev_sum(series, inside) + line - 0.5 * precision * at.square()

    def mass(sign: float) -> tuple[Tensor, Tensor]:
        """Return the mass on one side, and its error if residuals go on as straight lines beyond the nodes."""
        way = nodes.reach + (-sign * x).clamp(min=0.0)
        there = x + sign * way * places[:, None]
        ratios = torch.exp(energy(there) - energy(x))
        slope = torch.where(there < 0.0, left_slope, right_slope).abs()
        error = shares @ (0.5 * slope * beyond(there).square() * ratios)
        return way * (shares @ ratios), way * error + nodes.half_range * ratios[-1]

    (below, error_below), (above, error_above) = mass(-1.0), mass(1.0)
    error = 0.5 * (series[-1].abs() + series[-2].abs()) + (error_below + error_above) / (below + above)
    return Interpolated(below, above, torch.where(x.abs() <= nodes.half_range, error, math.inf))


def _chebyshev_sum(coefficients: Sequence[Tensor], u: Tensor) -> Tensor:
    """Return a series with coefficients ``(N,)`` each at places ``(*, N)``, by Clenshaw's recurrence."""
    later, last = torch.zeros_like(u), coefficients[-1]
    for coefficient in coefficients[-2:0:-1]:
        later, last = last, coefficient + 2.0 * u * last - later
    return coefficients[0] + u * last - later
