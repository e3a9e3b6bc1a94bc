"""Densities that are known by their score at nodes: a polynomial over each cell, a Gaussian beyond the outer two.

Over a cell of width :math:`h` the score is the quintic that has the right value, slope and second derivative at both
ends, so that the log density is of degree six and

.. math:: E(x_{i+1}) - E(x_i) = \\tfrac{h}{2}(s_i + s_{i+1}) + \\tfrac{h^2}{10}(s'_i - s'_{i+1})
    + \\tfrac{h^3}{120}(s''_i + s''_{i+1}) + O(h^7),

exact for Gaussians at any width. The second derivatives cost no evaluation: they follow from the values and slopes at
three neighbouring nodes. The exponential is integrated without evaluating the score again, so the number of nodes
depends on how the score bends, not on how fast the density falls.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_ALPHA, _BETA = math.sqrt(2.0 / 3.0), math.sqrt(0.2)
#: Interior points on [0, 1] of the Lobatto-Kronrod rule (Gander and Gautschi, 2000), with the ends: degree 9.
_POINTS = tuple(0.5 + 0.5 * p for p in (-_ALPHA, -_BETA, 0.0, _BETA, _ALPHA))
_KRONROD = tuple(w / 2940.0 for w in (432.0, 625.0, 672.0, 625.0, 432.0))
_KRONROD_END = 77.0 / 2940.0
_LOBATTO_INNER, _LOBATTO_END = 5.0 / 12.0, 1.0 / 12.0  # the embedded rule: ends and +-beta, degree 5

_NARROWEST = 1e-3  # of two neighbours' width: a cell narrower than that has no say in the other's shape
_LARGEST_RISE = 700.0  # whose exponential is a number
_LARGEST_EXPONENT = 60.0  # a cell's interior may rise this far above all nodes before it is cut


@dataclass(frozen=True)
class PiecewiseDensity:
    """Densities of ``N`` conditionals, each known at ``K`` sorted nodes and Gaussian beyond the outer two.

    Attributes:
        x: Nodes, ``(N, K)``, ascending.
        s: Scores at the nodes, ``(N, K)``.
        ds: Their derivatives, ``(N, K)``.
        dds: Their second derivatives, estimated from the neighbours, ``(N, K)``.
        energy: Log density at the nodes up to a constant, ``(N, K)``, with its maximum at zero.
        cells: Mass of each cell in the same scale, ``(N, K - 1)``.
        tails: Mass left of the first and right of the last node, ``(N, 2)``.
        log_mass: :math:`\\log \\int e^{E}`, ``(N,)``.
        error: Estimated absolute error of the log density in nats, ``(N,)``.
        converged: Whether the error is within the tolerance asked for, ``(N,)``.
        evaluations: Evaluations of the score spent on each conditional, ``(N,)``.
    """

    x: Tensor
    s: Tensor
    ds: Tensor
    dds: Tensor
    energy: Tensor
    cells: Tensor
    tails: Tensor
    log_mass: Tensor
    error: Tensor
    converged: Tensor
    evaluations: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at ``x (N, M)`` in nats, without further evaluations of the score."""
        cell, offset = self._locate(x)
        polynomial, width = self._within(cell)
        inside = self.energy.gather(1, cell) + _rise(polynomial, offset / width)
        left, right = x < self.x[:, :1], x > self.x[:, -1:]
        distance = torch.where(left, x - self.x[:, :1], x - self.x[:, -1:])
        edge = torch.where(left, 0, self.x.shape[1] - 1)
        energy, s, ds = (t.gather(1, edge) for t in (self.energy, self.s, self.ds.clamp(max=0.0)))
        outside = energy + s * distance + 0.5 * ds * distance.square()
        return torch.where(left | right, outside, inside) - self.log_mass[:, None]

    def cdf(self, x: Tensor) -> Tensor:
        """Cumulative distribution at ``x (N, M)``, without further evaluations of the score."""
        cell, offset = self._locate(x)
        polynomial, width = self._within(cell)
        mean, _ = _mean_and_end(polynomial, offset / width)
        part = torch.exp(self.energy.gather(1, cell)) * offset * mean
        inside = self._cumulative().gather(1, cell) + part
        left = tail_mass(self.energy[:, :1], -self.s[:, :1], self.ds[:, :1], x - self.x[:, :1])
        right = tail_mass(self.energy[:, -1:], self.s[:, -1:], self.ds[:, -1:], self.x[:, -1:] - x)
        total = torch.exp(self.log_mass)[:, None]
        mass = torch.where(x < self.x[:, :1], left, inside)
        return torch.where(x > self.x[:, -1:], 1.0 - right / total, mass / total).clamp(0.0, 1.0)

    def quantile(self, u: Tensor, iterations: int = 60, tolerance: float = 1e-10) -> Tensor:
        """The inverse of :meth:`cdf` at ``u (N, M)`` in (0, 1), without further evaluations of the score.

        Newton steps on the mass within a cell, each kept inside a bracket that shrinks, until none is longer than
        ``tolerance`` cells. The error left is about the square of that.
        """
        target = u * torch.exp(self.log_mass)[:, None]
        cumulative = self._cumulative()  # (N, K)
        cell = (torch.searchsorted(cumulative, target.contiguous(), right=True) - 1).clamp(0, self.x.shape[1] - 2)
        polynomial, width = self._within(cell)
        energy = self.energy.gather(1, cell)
        height = torch.exp(energy) * width
        wanted = target - cumulative.gather(1, cell)
        low, high = torch.zeros_like(u), torch.ones_like(u)
        rise = self.energy.gather(1, cell + 1) - energy
        t = _exponential_quantile((wanted / self.cells.gather(1, cell).clamp(min=1e-300)).clamp(0.0, 1.0), rise)
        for _ in range(iterations):
            mean, end = _mean_and_end(polynomial, t)
            excess = height * t * mean - wanted
            low, high = torch.where(excess <= 0, t, low), torch.where(excess >= 0, t, high)
            newton = t - excess / (height * end).clamp(min=1e-300)
            inside = (newton > low) & (newton < high)
            length = torch.where(inside, (newton - t).abs(), (high - low).sqrt())  # halving does not square the error
            t = torch.where(inside, newton, 0.5 * (low + high))
            if bool((length <= tolerance).all()):
                break
        inside = self.x.gather(1, cell) + t * width
        return self._tail_quantile(target, inside)

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """The first two moments, each ``(N,)``; the tails beyond the nodes count as sitting on the outer nodes."""
        energy, width = self.energy[:, :-1], self.x.diff(dim=1)
        polynomial = polynomial_of(width, *((f[:, :-1], f[:, 1:]) for f in (self.s, self.ds, self.dds)))
        first = second = torch.zeros_like(self.log_mass)
        ends = ((0.0, _KRONROD_END), (1.0, _KRONROD_END))
        for point, weight in (*ends, *zip(_POINTS, _KRONROD, strict=True)):
            mass = weight * width * _exp(energy + _rise(polynomial, torch.full_like(width, point)))
            value = self.x[:, :-1] + point * width
            first, second = first + (mass * value).sum(1), second + (mass * value.square()).sum(1)
        edges = torch.stack([self.x[:, 0], self.x[:, -1]], 1)
        total = torch.exp(self.log_mass)
        mean = (first + (self.tails * edges).sum(1)) / total
        square = (second + (self.tails * edges.square()).sum(1)) / total
        return mean, square - mean.square()

    # What the methods share -------------------------------------------------------------------------------------

    def _locate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The cell of each point and how far into it the point lies, each ``(N, M)``."""
        cell = (torch.searchsorted(self.x, x.contiguous(), right=True) - 1).clamp(0, self.x.shape[1] - 2)
        start, end = self.x.gather(1, cell), self.x.gather(1, cell + 1)
        return cell, torch.minimum((x - start).clamp(min=0.0), end - start)

    def _within(self, cell: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """What the log density does within cells: the coefficients of its rise, and the widths, each ``(N, M)``."""
        ends = torch.cat([cell, cell + 1], 1)
        (start, end), s, ds, dds = (t.gather(1, ends).chunk(2, 1) for t in (self.x, self.s, self.ds, self.dds))
        width = end - start
        return polynomial_of(width, s, ds, dds), width.clamp(min=1e-300)

    def _cumulative(self) -> Tensor:
        """Mass left of each node, ``(N, K)``."""
        return torch.cat([self.tails[:, :1], self.tails[:, :1] + self.cells.cumsum(1)], 1)

    def _tail_quantile(self, target: Tensor, inside: Tensor) -> Tensor:
        """Replace the quantiles whose mass lies beyond the outer nodes by those of the Gaussian tails."""
        for edge, mass, side in ((0, target, -1.0), (-1, torch.exp(self.log_mass)[:, None] - target, 1.0)):
            beyond = mass < self.tails[:, edge : edge + 1 or None]
            if not bool(beyond.any()):
                continue
            slope = side * self.s[:, edge, None]
            curvature = -self.ds[:, edge, None]
            # mass / tail = erfc(z + d sqrt(k / 2)) / erfc(z) for a Gaussian tail, exp(slope d) for an exponential one
            share = (mass / self.tails[:, edge : edge + 1 or None].clamp(min=1e-300)).clamp(1e-300, 1.0)
            root = torch.sqrt(0.5 * curvature.clamp(min=1e-12))
            z = -slope / (2.0 * root)
            tail_probability = 0.5 * torch.erfc(z) * share
            gaussian = (-torch.special.ndtri(tail_probability.clamp(min=1e-300)) / math.sqrt(2.0) - z) / root
            exponential = torch.log(share) / slope.clamp(max=-1e-12)
            usable = (curvature > 1e-12) & (tail_probability > 1e-290)
            distance = torch.where(usable, gaussian, exponential).clamp(min=0.0)
            inside = torch.where(beyond, self.x[:, edge, None] + side * distance, inside)
        return inside


# The formulas -------------------------------------------------------------------------------------------------------


def second_derivative(width: Tensor, s: Tensor, ds: Tensor) -> Tensor:
    """Second derivatives of the score at the nodes, ``(N, K)``.

    At an inner node that of the quintic with the right values and slopes there and at both neighbours; at the outer
    two, and beside a cell that is far narrower than its neighbour, that of the cubic of the (wider) cell. The cubics
    left and right of a node have second derivatives that differ by q and third derivatives that differ by t; from
    that follow the fourth and fifth derivatives, and what they add to the second.
    """
    h = torch.where(width > 0.0, width, 1.0)
    mean = s.diff(dim=1) / h
    after = (6.0 * mean - 4.0 * ds[:, :-1] - 2.0 * ds[:, 1:]) / h  # of a cell's cubic at its left end
    before = (2.0 * ds[:, :-1] + 4.0 * ds[:, 1:] - 6.0 * mean) / h  # and at its right end
    third = (before - after) / h
    left, right = h[:, :-1], h[:, 1:]
    both = left + right
    a, b = left / both, right / both
    q, t = after[:, 1:] - before[:, :-1], both * third.diff(dim=1)
    by_fourth_and_fifth = b.square() * (a.square() * t / 1.5 - (1.0 + 2.0 * a) * q)
    wider = torch.where(width[:, 1:] > width[:, :-1], after[:, 1:], before[:, :-1])
    graded = torch.minimum(width[:, :-1], width[:, 1:]) > _NARROWEST * both
    inner = torch.where(graded, after[:, 1:] + by_fourth_and_fifth, wider)
    return torch.cat([after[:, :1], inner, before[:, -1:]], 1)


def polynomial_of(width: Tensor, *sides: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Coefficients of t to t^6 of the rise of the log density over cells, each ``(*)``.

    ``sides`` are the score, its derivative and its second derivative, each at the left and at the right ends,
    ``(*)``. The score is Taylor's polynomial of the left end and what it takes to meet value, slope and curvature at
    the right one.
    """
    (s, s_end), (ds, ds_end), (dds, dds_end) = sides
    square = width * width
    cube = square * width
    slope, bend = ds * square, dds * cube
    value_off = (s_end - s) * width - slope - 0.5 * bend
    slope_off = ds_end * square - slope - bend
    bend_off = dds_end * cube - bend
    third = 10.0 * value_off - 4.0 * slope_off + 0.5 * bend_off
    fourth = 7.0 * slope_off - 15.0 * value_off - bend_off
    fifth = 6.0 * value_off - 3.0 * slope_off + 0.5 * bend_off
    return s * width, slope / 2.0, bend / 6.0, third / 4.0, fourth / 5.0, fifth / 6.0


def _rise(polynomial: tuple[Tensor, ...], t: Tensor | float) -> Tensor:
    a, b, c, d, e, f = polynomial
    return t * (a + t * (b + t * (c + t * (d + t * (e + t * f)))))


def _exp(x: Tensor) -> Tensor:
    return torch.exp(x.clamp(max=_LARGEST_EXPONENT))


def _mean_and_end(polynomial: tuple[Tensor, ...], t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of exp(rise) over [0, t], by the rule of degree 9, and exp(rise) at t."""
    points, weights = _rule(t.dtype, t.device)
    values = _exp(_rise(polynomial, points * t))  # at t itself last
    return _KRONROD_END + (weights * values).sum(0), values[-1]


@functools.cache
def _rule(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Points and weights of the rule of degree 9 but for its first end, ``(6, 1, 1)``, to be broadcast over cells."""
    with torch.inference_mode(False):  # what is kept may later be differentiated through
        rule = torch.tensor(((*_POINTS, 1.0), (*_KRONROD, _KRONROD_END)), dtype=dtype, device=device)
    return rule[0, :, None, None], rule[1, :, None, None]


def _exponential_quantile(u: Tensor, rise: Tensor) -> Tensor:
    """Quantile of a density on [0, 1] whose logarithm is straight and rises by ``rise``."""
    rise = torch.where(rise == 0.0, 1e-300, rise.clamp(max=_LARGEST_RISE))
    return (torch.log1p(u * torch.expm1(rise)) / rise).clamp(0.0, 1.0)


def cell_masses(energy: Tensor, width: Tensor, polynomial: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Mass of each cell, and what the rule of degree 9 may have missed of it."""
    left, right = energy[:, :-1], energy[:, 1:]
    ends = torch.exp(left) + torch.exp(right)
    points, weights = (part[:-1] for part in _rule(width.dtype, width.device))
    inner = _exp(left + _rise(polynomial, points))  # (5, N, K - 1)
    mass = _KRONROD_END * ends + (weights * inner).sum(0)
    coarse = _LOBATTO_END * ends + _LOBATTO_INNER * (inner[1] + inner[3])
    gap = (mass - coarse).abs()
    # the gap is the error of the rule of degree 5; that of degree 9 shrinks as its power (as in QUADPACK)
    return width * mass, width * gap * (gap / mass.clamp(min=1e-300)).clamp(max=1.0).sqrt()


def tail_mass(energy: Tensor, slope: Tensor, ds: Tensor, distance: Tensor | float = 0.0) -> Tensor:
    """Mass beyond an outer node, from ``distance <= 0`` (further out) on; ``slope`` is the score pointing outwards.

    Gaussian where the log density bends down, exponential where it is straight and falls, infinite where it rises.
    """
    ds = ds.clamp(max=0.0)
    slope, energy = slope - ds * distance, energy - slope * distance + 0.5 * ds * torch.as_tensor(distance) ** 2
    bends, falls = ds < -1e-12, slope < -1e-12
    root = torch.sqrt(-2.0 * torch.where(bends, ds, -torch.ones_like(ds)))
    gaussian = math.sqrt(math.pi) / root * torch.special.erfcx(-slope / root)
    exponential = -1.0 / torch.where(falls, slope, -torch.ones_like(slope))
    shape = torch.where(bends, gaussian, torch.where(falls, exponential, torch.full_like(slope, math.inf)))
    return torch.exp(energy) * shape
