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

import math
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
        energy, s, ds = (t.gather(1, cell) for t in (self.energy, self.s, self.ds))
        inside = energy + _rise(self._polynomial(cell), offset / self._width(cell))
        left, right = x < self.x[:, :1], x > self.x[:, -1:]
        distance = torch.where(left, x - self.x[:, :1], x - self.x[:, -1:])
        edge = torch.where(left, 0, self.x.shape[1] - 1)
        energy, s, ds = (t.gather(1, edge) for t in (self.energy, self.s, self.ds.clamp(max=0.0)))
        outside = energy + s * distance + 0.5 * ds * distance.square()
        return torch.where(left | right, outside, inside) - self.log_mass[:, None]

    def cdf(self, x: Tensor) -> Tensor:
        """Cumulative distribution at ``x (N, M)``, without further evaluations of the score."""
        cell, offset = self._locate(x)
        width = self._width(cell)
        part = torch.exp(self.energy.gather(1, cell)) * offset * _kronrod(self._polynomial(cell), offset / width)
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
        polynomial, width = self._polynomial(cell), self._width(cell)
        height = torch.exp(self.energy.gather(1, cell)) * width
        wanted = target - cumulative.gather(1, cell)
        low, high = torch.zeros_like(u), torch.ones_like(u)
        t = (wanted / self.cells.gather(1, cell).clamp(min=1e-300)).clamp(0.0, 1.0)
        for _ in range(iterations):
            excess = height * t * _kronrod(polynomial, t) - wanted
            low, high = torch.where(excess <= 0, t, low), torch.where(excess >= 0, t, high)
            newton = t - excess / (height * torch.exp(_rise(polynomial, t))).clamp(min=1e-300)
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
        polynomial = polynomial_of(width, self.s, self.ds, self.dds)
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
        offset = (x - self.x.gather(1, cell)).clamp(min=0.0)
        return cell, torch.minimum(offset, self._width(cell))

    def _width(self, cell: Tensor) -> Tensor:
        return (self.x.gather(1, cell + 1) - self.x.gather(1, cell)).clamp(min=1e-300)

    def _polynomial(self, cell: Tensor) -> tuple[Tensor, ...]:
        width = self.x.gather(1, cell + 1) - self.x.gather(1, cell)
        ends = [torch.stack([t.gather(1, cell), t.gather(1, cell + 1)], -1) for t in (self.s, self.ds, self.dds)]
        return tuple(p.squeeze(-1) for p in polynomial_of(width.unsqueeze(-1), *ends))

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
    third = (6.0 * (ds[:, :-1] + ds[:, 1:]) - 12.0 * mean) / h.square()
    left, right = h[:, :-1], h[:, 1:]
    both = left + right
    a, b = left / both, right / both
    q, t = after[:, 1:] - before[:, :-1], both * third.diff(dim=1)
    fourth = 20.0 * b**2 * ((a**3 + b**3) * t / 30.0 + 0.15 * (b - a) * q)
    fifth = -8.0 * b**3 * (0.5 * q + (b - a) * t / 12.0)
    wider = torch.where(width[:, 1:] > width[:, :-1], after[:, 1:], before[:, :-1])
    graded = torch.minimum(width[:, :-1], width[:, 1:]) > _NARROWEST * both
    inner = torch.where(graded, after[:, 1:] + fourth + fifth, wider)
    return torch.cat([after[:, :1], inner, before[:, -1:]], 1)


def polynomial_of(width: Tensor, s: Tensor, ds: Tensor, dds: Tensor) -> tuple[Tensor, ...]:
    """Coefficients of t to t^6 of the rise of the log density over cells, each ``(*, K - 1)``."""
    (a, b), (p, q), (u, v) = (
        (f[..., :-1] * width**order, f[..., 1:] * width**order) for order, f in ((1, s), (2, ds), (3, dds))
    )
    rise = b - a
    third = 10.0 * rise - 6.0 * p - 4.0 * q - 1.5 * u + 0.5 * v
    fourth = -15.0 * rise + 8.0 * p + 7.0 * q + 1.5 * u - v
    fifth = 6.0 * rise - 3.0 * (p + q) + 0.5 * (v - u)
    return a, p / 2.0, u / 6.0, third / 4.0, fourth / 5.0, fifth / 6.0


def _rise(polynomial: tuple[Tensor, ...], t: Tensor | float) -> Tensor:
    a, b, c, d, e, f = polynomial
    return t * (a + t * (b + t * (c + t * (d + t * (e + t * f)))))


def _exp(x: Tensor) -> Tensor:
    return torch.exp(x.clamp(max=_LARGEST_EXPONENT))


def _kronrod(polynomial: tuple[Tensor, ...], t: Tensor) -> Tensor:
    """Mean of exp(rise) over [0, t], by the rule of degree 9."""
    points, weights = _rule(t)
    inner = _exp(_rise(polynomial, points * t))
    return _KRONROD_END * (1.0 + _exp(_rise(polynomial, t))) + (weights * inner).sum(0)


def _rule(like: Tensor) -> tuple[Tensor, Tensor]:
    """Interior points and weights of the rule of degree 9, ``(5, 1, 1)``, to be broadcast over cells."""
    rule = torch.tensor((_POINTS, _KRONROD), dtype=like.dtype, device=like.device)
    return rule[0, :, None, None], rule[1, :, None, None]


def cell_masses(energy: Tensor, width: Tensor, polynomial: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Mass of each cell, and what the rule of degree 9 may have missed of it."""
    left, right = energy[:, :-1], energy[:, 1:]
    ends = torch.exp(left) + torch.exp(right)
    points, weights = _rule(width)
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
