"""Mean densities of one-dimensional conditionals over cells, such as the steps of rounded numbers."""

from collections.abc import Callable
from operator import methodcaller
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from arcsm.heads import Head, ScoreHead

_MIN_CELL_MASS = 1e-4  # below it, a difference of CDFs is less accurate than a quadrature of the density
_MIN_EXACT_CELL_MASS = 1e-10  # the same for CDFs in closed form and in double precision
_PARABOLA = 0.4  # standard deviations of noise, within which log densities are parabolas, to about 1e-3 nats
_ERRORS_OF_CELLS = 3.0  # mass of a cell over the tolerance, below which a difference of two flows is too inaccurate
_FLAT = 6e-4  # squared relative change of a density over half a cell; below it, the mean is within 1e-4 nats
_GENTLE = 9.0  # below it, few points are enough
_CHANGE_AT = (-1.0, -0.5, 0.0, 0.5, 1.0)  # half cells from the middle, where the change is evaluated
#: Points of the quadrature of cells. If the log density is linear, 6 are accurate to 1e-6 nats for a change by 6 nats,
#: and 20 for a change by 100 nats.
_FEW_CELL_POINTS, _CELL_POINTS = 6, 20
_POINTS_AT_A_TIME = 4096  # in all cells


class Densities(Protocol):
    """What :class:`~arcsm.conditionals.Conditionals` have for this."""

    head: Head
    projection: Tensor

    @property
    def method(self) -> str: ...

    @property
    def sigma(self) -> float | None: ...

    @property
    def accuracy(self) -> Any: ...

    def apply(self, function: Callable[[Self], Tensor], rows: Tensor | None = None, **changes: Any) -> Tensor: ...

    def log_prob(self, x: Tensor) -> Tensor: ...

    def cdf(self, x: Tensor) -> Tensor: ...

    def log_mean_density(self, x: Tensor, half: Tensor) -> Tensor: ...

    def score_and_derivative(self, x: Tensor, rows: Tensor | slice, sigma: float | None) -> tuple[Tensor, Tensor]: ...

    def may_be_single(self, x: Tensor) -> bool: ...


def log_mean_density(q: Densities, x: Tensor, half: Tensor) -> Tensor:
    """Return the log of the mean density within ``half (N,)`` of ``x (N,)``, in nats.

    .. math:: \\log \\frac{F(x + h) - F(x - h)}{2 h}

    Where ``half`` is small beside the noise, which smooths the log density, that is nearly a parabola within it,
    and the mean is that of its exponential. Elsewhere, where the mass is so small that the difference would lose
    digits, the density is integrated by Gauss-Legendre quadrature. Where ``half`` is zero, the result is the log
    density at ``x``.
    """
    rise, is_parabola = _log_mean_of_parabola(q, x, half)
    if bool(is_parabola.any()):
        near, far = is_parabola.nonzero()[:, 0], (~is_parabola).nonzero()[:, 0]
        means = q.apply(lambda part: part.log_prob(x[near]), near) + rise[near]
        others = q.apply(lambda part: part.log_mean_density(x[far], half[far]), far)
        return torch.zeros_like(x).index_put((near,), means.to(x)).index_put((far,), others.to(x))
    wide = (half > 0.0).nonzero()[:, 0]
    mass = torch.zeros_like(x, dtype=torch.float64)
    if len(wide):
        single = q.may_be_single(x)
        upper = q.apply(lambda part: part.cdf(x[wide] + half[wide]), wide, single=single).double()
        lower = q.apply(lambda part: part.cdf(x[wide] - half[wide]), wide, single=single).double()
        mass = mass.index_put((wide,), upper - lower)
    exact = q.method == "closed_form" and q.projection.dtype == x.dtype == torch.float64
    of_flow = _ERRORS_OF_CELLS * q.accuracy.tol if q.method == "flow" else 0.0
    small = mass < (_MIN_EXACT_CELL_MASS if exact else max(_MIN_CELL_MASS, of_flow))
    result = torch.log(torch.where(small, 1.0, mass) / (2.0 * half.double()).masked_fill(small, 1.0)).to(x)
    rest = small.nonzero()[:, 0]
    if len(rest):
        means = q.apply(lambda part: _integrated_mean(part, x[rest], half[rest]), rest)
        result = result.index_put((rest,), means)
    return result


@torch.no_grad()
def _log_mean_of_parabola(q: Densities, x: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Return by how many nats the log mean density exceeds the log density, and where a parabola tells, ``(N,)``.

    The slope and the bend of the parabola are the score and its derivative at ``x``.
    """
    result, near = torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool)
    if not isinstance(q.head, ScoreHead) or q.sigma is None:
        return result, near
    rows = ((half > 0.0) & (half <= _PARABOLA * q.sigma)).nonzero()[:, 0]
    if not len(rows):
        return result, near
    s, ds = (f.to(x)[:, None] for f in q.score_and_derivative(x[rows], rows, q.sigma))
    rule = np.polynomial.legendre.leggauss(_FEW_CELL_POINTS)
    t = half[rows, None] * torch.from_numpy(rule[0]).to(x)
    log_weights = torch.from_numpy(np.log(0.5 * rule[1])).to(x)
    result[rows] = torch.logsumexp(s * t + 0.5 * ds * t.square() + log_weights, 1)
    near[rows] = (half[rows].square() * (s.square() + ds.abs())[:, 0]) < _GENTLE  # else there are too few points
    return result, near


def _integrated_mean(q: Densities, x: Tensor, half: Tensor) -> Tensor:
    """Return :func:`log_mean_density` by quadrature of the density; at one point where the density is flat."""
    change, result = _squared_change(q, x, half), torch.zeros_like(x)
    gentle = (change > _FLAT) & (change < _GENTLE)
    for count, chosen in ((1, change <= _FLAT), (_FEW_CELL_POINTS, gentle), (_CELL_POINTS, change >= _GENTLE)):
        rule = np.polynomial.legendre.leggauss(count)
        offsets, log_weights = torch.from_numpy(rule[0]).to(x), torch.from_numpy(np.log(0.5 * rule[1])).to(x)
        for rows in chosen.nonzero()[:, 0].split(_POINTS_AT_A_TIME // count):
            points = x[rows, None] + offsets * half[rows, None]  # (n, K)
            every = rows.repeat_interleave(count)
            terms = q.apply(methodcaller("log_prob", points.flatten()), every).view_as(points)
            result = result.index_put((rows,), torch.logsumexp(terms + log_weights, 1).to(x))
    return result


@torch.no_grad()
def _squared_change(q: Densities, x: Tensor, half: Tensor) -> Tensor:
    """Return about the squared relative change of the density within ``half (N,)`` of ``x (N,)``.

    It is the largest of several points. For a head that is no :class:`ScoreHead`, whose density may jump, it is
    infinite.
    """
    if not isinstance(q.head, ScoreHead):
        return torch.where(half > 0.0, torch.inf, 0.0)
    points = x[:, None] + half[:, None] * torch.tensor(_CHANGE_AT).to(x)
    s, ds = q.score_and_derivative(points, slice(None), q.sigma)  # (N, K)
    return half.square() * (s.square() + ds.abs()).amax(1)
