"""Piecewise densities from scores at nodes: a polynomial log density in each cell, Gaussian tails outside.

Over a cell of width :math:`h` the score is the quintic that matches value, slope and second derivative at both ends.
The log density then has degree six, and its step over the cell is

.. math:: E(x_{i+1}) - E(x_i) = \\tfrac{h}{2}(s_i + s_{i+1}) + \\tfrac{h^2}{10}(s'_i - s'_{i+1})
    + \\tfrac{h^3}{120}(s''_i + s''_{i+1}) + O(h^7),

This is exact for Gaussians at any width. The second derivatives cost no evaluation: they follow from the values and
slopes at three neighbouring nodes. The exponential of the polynomial is integrated by a Lobatto-Kronrod rule without
evaluating the score again. The number of nodes therefore depends on how the score bends, not on how fast the density
falls.

References:
    Adaptive Quadrature - Revisited (Gander and Gautschi, BIT 2000)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from arcsm import _native
from arcsm._native import Rule
from arcsm._runtime.devices import constant

_ALPHA, _BETA = math.sqrt(2.0 / 3.0), math.sqrt(0.2)
#: Interior points on [0, 1] of the Lobatto-Kronrod rule. With the ends, its degree is 9.
_POINTS = tuple(0.5 + 0.5 * p for p in (-_ALPHA, -_BETA, 0.0, _BETA, _ALPHA))
_KRONROD = tuple(w / 2940.0 for w in (432.0, 625.0, 672.0, 625.0, 432.0))
_KRONROD_END = 77.0 / 2940.0
_LOBATTO_INNER, _LOBATTO_END = 5.0 / 12.0, 1.0 / 12.0  # the embedded rule: ends and +-beta, degree 5

_MIN_WIDTH_RATIO = 1e-3  # of a cell to the sum of two neighbours; a narrower one does not shape its neighbour
_MAX_RISE = 700.0  # exp of it is finite
_MAX_EXPONENT = 60.0  # how far the interior of a cell may rise above all nodes before it is clamped
_TINY = 1e-300
_PARTS = 8  # of a cell, for the mass of tails
TAIL = 1e-6  #: Where :math:`F` or :math:`1 - F` is below it, the rule over a whole cell is too inaccurate.
_TAIL_ROWS = 64  # integrated in parts at a time


@dataclass(frozen=True)
class PiecewiseDensity:
    """``N`` densities, each on ``K`` ascending nodes, with Gaussian tails."""

    x: Tensor  #: Nodes, ``(N, K)``.
    s: Tensor  #: Scores at the nodes, ``(N, K)``.
    ds: Tensor  #: Derivatives of the score, ``(N, K)``.
    dds: Tensor  #: Second derivatives of the score, estimated from neighbouring nodes, ``(N, K)``.
    energy: Tensor  #: Unnormalised log density :math:`E` at the nodes, ``(N, K)``, with maximum zero.
    cells: Tensor  #: Mass of each cell under :math:`e^E`, ``(N, K - 1)``.
    tails: Tensor  #: Mass left of the first and right of the last node, ``(N, 2)``.
    log_mass: Tensor  #: :math:`\log \int e^{E}`, ``(N,)``.
    error: Tensor  #: Estimated absolute error of the log density in nats, ``(N,)``.
    converged: Tensor  #: Whether the error is within the requested tolerance, ``(N,)``.
    evaluations: Tensor  #: Number of score evaluations for each conditional, ``(N,)``.

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density at ``x (N, M)`` in nats."""
        cell, offset = self._locate(x)
        polynomial, width = self._within(cell)
        inside = self.energy.gather(1, cell) + rise_at(polynomial, offset / width)
        left, right = x < self.x[:, :1], x > self.x[:, -1:]
        edge = torch.where(left, 0, self.x.shape[1] - 1)
        node, energy, s, ds = (t.gather(1, edge) for t in (self.x, self.energy, self.s, self.ds.clamp(max=0.0)))
        distance = x - node
        outside = energy + s * distance + 0.5 * ds * distance.square()
        return torch.where(left | right, outside, inside) - self.log_mass[:, None]

    def cdf(self, x: Tensor) -> Tensor:
        """Return the distribution function at ``x (N, M)``."""
        cell, offset = self._locate(x)
        polynomial, width = self._within(cell)
        mean, _ = _mean_and_end(polynomial, offset / width)
        inside = self._cumulative().gather(1, cell) + torch.exp(self.energy.gather(1, cell)) * offset * mean
        left = tail_mass(self.energy[:, :1], -self.s[:, :1], self.ds[:, :1], x - self.x[:, :1])
        right = tail_mass(self.energy[:, -1:], self.s[:, -1:], self.ds[:, -1:], self.x[:, -1:] - x)
        total = torch.exp(self.log_mass)[:, None]
        mass = torch.where(x < self.x[:, :1], left, inside)
        return torch.where(x > self.x[:, -1:], 1.0 - right / total, mass / total).clamp(0.0, 1.0)

    def icdf(self, u: Tensor, iterations: int = 60, tolerance: float = 1e-10, waits: bool = True) -> Tensor:
        """Return the inverse of :meth:`cdf` at ``u (N, M)`` in (0, 1).

        Newton steps on the mass within a cell, each inside a shrinking bracket, continue until none is longer than
        ``tolerance`` cell widths. The remaining error is about the square of that. If the host does not wait for the
        result (``waits``), it takes all ``iterations``.
        """
        target = u * torch.exp(self.log_mass)[:, None]
        at_nodes = [self.x, self.s, self.ds, self.dds, self.energy]
        if u.shape == (len(self.x), 1) and waits and _native.readable(*at_nodes, u) and _native.available():
            accuracy = tolerance, _MAX_RISE, iterations
            of_cells = self.cells, self.tails, self.log_mass
            x = _native.piecewise_icdf(rule(), accuracy, at_nodes, *of_cells, u[:, 0])[:, None]
            return self._with_tail_quantiles(target, x, waits)
        cumulative = self._cumulative()  # (N, K)
        cell = (torch.searchsorted(cumulative, target.contiguous(), right=True) - 1).clamp(0, self.x.shape[1] - 2)
        polynomial, width = self._within(cell)
        energy = self.energy.gather(1, cell)
        height = torch.exp(energy) * width
        remainder = target - cumulative.gather(1, cell)
        low, high = torch.zeros_like(u), torch.ones_like(u)
        rise = self.energy.gather(1, cell + 1) - energy
        t = exponential_icdf((remainder / self.cells.gather(1, cell).clamp(min=_TINY)).clamp(0.0, 1.0), rise)
        for _ in range(iterations):
            mean, end = _mean_and_end(polynomial, t)
            excess = height * t * mean - remainder
            low, high = torch.where(excess <= 0, t, low), torch.where(excess >= 0, t, high)
            newton = t - excess / (height * end).clamp(min=_TINY)
            inside = (newton >= low) & (newton <= high)
            length = torch.where(inside, (newton - t).abs(), (high - low).sqrt())  # bisection does not square the error
            t = torch.where(inside, newton, 0.5 * (low + high))
            if waits and bool((length <= tolerance).all()):
                break
        return self._with_tail_quantiles(target, self.x.gather(1, cell) + t * width, waits)

    def precise_cdf(self, x: Tensor) -> Tensor:
        """Return :meth:`cdf` at ``x (N, 1)``; in the tails, accurate relative to the smaller of it and 1 minus it."""
        result = self.cdf(x)
        for rows in in_tails(result).split(_TAIL_ROWS):
            lower = result[rows, 0] < 0.5
            for part, upper in ((rows[lower], False), (rows[~lower], True)):
                fine = self.select(part)._subdivided(_PARTS)
                result[part] = 1.0 - fine._mirrored().cdf(-x[part]) if upper else fine.cdf(x[part])
        return result

    def tail_icdf(self, u: Tensor) -> Tensor:
        """Return :meth:`icdf` at ``u (N, 1)``, accurate relative to the smaller of ``u`` and ``1 - u``.

        Cells in the tails are so wide that a rule over the whole cell knows their mass to many digits of the total,
        but to none of their own. Here each cell is integrated in parts, without evaluating the score again.
        """
        parts = [u[:0]]
        for rows in torch.arange(len(u), device=u.device).split(_TAIL_ROWS):
            fine = self.select(rows)._subdivided(_PARTS)
            lower, upper = u[rows].clamp(max=0.5), (1.0 - u[rows]).clamp(max=0.5)
            parts.append(torch.where(u[rows] < 0.5, fine.icdf(lower), -fine._mirrored().icdf(upper)))
        return torch.cat(parts)

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance, each ``(N,)``, with the mass of the tails placed on the outer nodes."""
        energy, width = self.energy[:, :-1], self.x.diff(dim=1)
        polynomial = polynomial_of(width, *((f[:, :-1], f[:, 1:]) for f in (self.s, self.ds, self.dds)))
        first = second = torch.zeros_like(self.log_mass)
        ends = ((0.0, _KRONROD_END), (1.0, _KRONROD_END))
        for point, weight in (*ends, *zip(_POINTS, _KRONROD, strict=True)):
            mass = weight * width * _exp(energy + rise_at(polynomial, torch.full_like(width, point)))
            value = self.x[:, :-1] + point * width
            first, second = first + (mass * value).sum(1), second + (mass * value.square()).sum(1)
        edges = torch.stack([self.x[:, 0], self.x[:, -1]], 1)
        total = torch.exp(self.log_mass)
        mean = (first + (self.tails * edges).sum(1)) / total
        square = (second + (self.tails * edges.square()).sum(1)) / total
        return mean, square - mean.square()

    def _subdivided(self, parts: int) -> Self:
        """Return the same densities on finer nodes: the interpolant itself, with more accurate masses."""
        width = self.x.diff(dim=1)
        polynomial = polynomial_of(width, *((f[:, :-1], f[:, 1:]) for f in (self.s, self.ds, self.dds)))
        t = torch.arange(parts, dtype=width.dtype, device=width.device) / parts
        _, b, c, d, e, f = rise = tuple(part[..., None] for part in polynomial)  # (N, K - 1, 1)
        h = torch.where(width > 0.0, width, 1.0)[..., None]
        slope = (2.0 * b + t * (6.0 * c + t * (12.0 * d + t * (20.0 * e + t * 30.0 * f)))) / h**2
        bend = (6.0 * c + t * (24.0 * d + t * (60.0 * e + t * 120.0 * f))) / h**3
        score = (rise[0] + t * (2.0 * b + t * (3.0 * c + t * (4.0 * d + t * (5.0 * e + t * 6.0 * f))))) / h
        inner = (self.x[:, :-1, None] + t * width[..., None], score, slope, bend)
        values = (*inner, self.energy[:, :-1, None] + rise_at(rise, t))
        ends = (self.x, self.s, self.ds, self.dds, self.energy)
        x, s, ds, dds, energy = (
            torch.cat([value.flatten(1), end[:, -1:]], 1) for value, end in zip(values, ends, strict=True)
        )
        width = x.diff(dim=1)
        cells, _ = cell_masses(energy, width, polynomial_of(width, *((f[:, :-1], f[:, 1:]) for f in (s, ds, dds))))
        log_mass = torch.log(cells.sum(1) + self.tails.sum(1))
        return replace(self, x=x, s=s, ds=ds, dds=dds, energy=energy, cells=cells, log_mass=log_mass)

    def _mirrored(self) -> Self:
        """Return the densities of the negative values."""
        flipped = {name: getattr(self, name).flip(1) for name in ("ds", "energy", "cells", "tails")}
        negative = {name: -getattr(self, name).flip(1) for name in ("x", "s", "dds")}
        return replace(self, **flipped, **negative)

    def select(self, rows: Tensor) -> Self:
        """Return the densities of ``rows (n,)``, an index or a mask."""
        return replace(self, **{name: value[rows] for name, value in vars(self).items()})

    def _locate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cell of each point and its offset from the left end, each ``(N, M)``."""
        cell = (torch.searchsorted(self.x, x.contiguous(), right=True) - 1).clamp(0, self.x.shape[1] - 2)
        start, end = self.x.gather(1, cell), self.x.gather(1, cell + 1)
        return cell, torch.minimum((x - start).clamp(min=0.0), end - start)

    def _within(self, cell: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the coefficients of the rise within cells, and their widths, each ``(N, M)``."""
        ends = torch.cat([cell, cell + 1], 1)
        (start, end), s, ds, dds = (t.gather(1, ends).chunk(2, 1) for t in (self.x, self.s, self.ds, self.dds))
        width = end - start
        return polynomial_of(width, s, ds, dds), width.clamp(min=_TINY)

    def _cumulative(self) -> Tensor:
        """Return the mass left of each node, ``(N, K)``."""
        return torch.cat([self.tails[:, :1], self.tails[:, :1] + self.cells.cumsum(1)], 1)

    def _with_tail_quantiles(self, target: Tensor, x: Tensor, waits: bool) -> Tensor:
        """Replace quantiles ``x`` in the tails, given the mass on their left, ``(N, M)`` each."""
        beyond = torch.exp(self.log_mass)[:, None] - target
        left, right = target < self.tails[:, :1], beyond < self.tails[:, 1:]
        if waits and not bool((left | right).any()):
            return x
        edge, slope, curvature, tail = (
            torch.where(right, values[:, -1:], values[:, :1]) for values in (self.x, self.s, -self.ds, self.tails)
        )
        side = torch.where(right, 1.0, -1.0)
        slope = side * slope
        # mass / tail = erfc(z + d sqrt(k / 2)) / erfc(z) for a Gaussian tail, exp(slope d) for an exponential one
        share = (torch.where(right, beyond, target) / tail.clamp(min=_TINY)).clamp(_TINY, 1.0)
        root = torch.sqrt(0.5 * curvature.clamp(min=1e-12))
        z = -slope / (2.0 * root)
        tail_probability = 0.5 * torch.erfc(z) * share
        gaussian = (-torch.special.ndtri(tail_probability.clamp(min=_TINY)) / math.sqrt(2.0) - z) / root
        exponential = torch.log(share) / slope.clamp(max=-1e-12)
        usable = (curvature > 1e-12) & (tail_probability > 1e-290)
        distance = torch.where(usable, gaussian, exponential).clamp(min=0.0)
        return torch.where(left | right, edge + side * distance, x)


@dataclass(frozen=True)
class DensitiesAt:
    """``N`` densities at a point ``x (N,)`` each."""

    density: PiecewiseDensity
    x: Tensor

    def log_prob(self) -> Tensor:
        """Return the log density in nats, ``(N,)``."""
        return self.density.log_prob(self.x[:, None])[:, 0]

    def cdf(self) -> Tensor:
        """Return the distribution function, precise in the tails, ``(N,)``."""
        return self.density.precise_cdf(self.x[:, None])[:, 0]


def in_tails(u: Tensor) -> Tensor:
    """Return the indices of the rows of probabilities ``(N, 1)`` that need precise tails, ``(n,)``."""
    return (torch.minimum(u, 1.0 - u) < TAIL).nonzero()[:, 0]


def second_derivative(width: Tensor, s: Tensor, ds: Tensor) -> Tensor:
    """Estimate the second derivatives of the score at the nodes, ``(N, K)``.

    At an inner node, it is that of the quintic through values and slopes at the node and both neighbours. At the outer
    nodes, and beside a cell far narrower than its neighbour, it is that of the (wider) cell's cubic Hermite
    interpolant. If the second and third derivatives of the cubics left and right of a node jump by :math:`q` and
    :math:`t / (h_l + h_r)`, the quintic's fourth and fifth derivatives follow from both jumps and correct the second
    derivative by :math:`b^2 (\\tfrac{2}{3} a^2 t - (1 + 2 a) q)`, with :math:`a, b` the cells' shares of the width.
    """
    h = torch.where(width > 0.0, width, 1.0)
    mean = s.diff(dim=1) / h
    after = (6.0 * mean - 4.0 * ds[:, :-1] - 2.0 * ds[:, 1:]) / h  # second derivative of each cubic, left end
    before = (2.0 * ds[:, :-1] + 4.0 * ds[:, 1:] - 6.0 * mean) / h  # and right end
    third = (before - after) / h
    left, right = h[:, :-1], h[:, 1:]
    both = left + right
    a, b = left / both, right / both
    q, t = after[:, 1:] - before[:, :-1], both * third.diff(dim=1)
    correction = b.square() * (a.square() * t / 1.5 - (1.0 + 2.0 * a) * q)
    wider = torch.where(width[:, 1:] > width[:, :-1], after[:, 1:], before[:, :-1])
    graded = torch.minimum(width[:, :-1], width[:, 1:]) > _MIN_WIDTH_RATIO * both
    inner = torch.where(graded, after[:, 1:] + correction, wider)
    return torch.cat([after[:, :1], inner, before[:, -1:]], 1)


def polynomial_of(width: Tensor, *sides: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the coefficients of :math:`t, \\dots, t^6` of the rise :math:`E(x_i + t h) - E(x_i)`, each ``(*)``.

    ``sides`` are the score, its first and its second derivative, each as a pair of the left and the right ends,
    ``(*)``. The score's quintic is its Taylor polynomial at the left end plus terms in :math:`t^3, t^4, t^5` that match
    value, slope and second derivative at the right end.
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


def rise_at(polynomial: tuple[Tensor, ...], t: Tensor | float) -> Tensor:
    """Evaluate a polynomial of :func:`polynomial_of` at :math:`t \\in [0, 1]`."""
    a, b, c, d, e, f = polynomial
    return t * (a + t * (b + t * (c + t * (d + t * (e + t * f)))))


def _exp(x: Tensor) -> Tensor:
    return torch.exp(x.clamp(max=_MAX_EXPONENT))


def _mean_and_end(polynomial: tuple[Tensor, ...], t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of exp(rise) over [0, t], by the rule of degree 9, and exp(rise) at t."""
    points, weights = _rule(t)
    values = _exp(rise_at(polynomial, points * t))  # the last one is at t
    return _KRONROD_END + (weights * values).sum(0), values[-1]


def _rule(like: Tensor) -> tuple[Tensor, Tensor]:
    """Return points and weights of the rule of degree 9 without its left end, ``(6, 1, 1)``."""
    rule = constant(((*_POINTS, 1.0), (*_KRONROD, _KRONROD_END)), like.dtype, like.device)
    return rule[0, :, None, None], rule[1, :, None, None]


def exponential_icdf(u: Tensor, rise: Tensor) -> Tensor:
    """Return quantiles :math:`\\log(1 + u (e^r - 1)) / r` of the density on [0, 1] proportional to :math:`e^{r t}`."""
    rise = torch.where(rise == 0.0, _TINY, rise.clamp(max=_MAX_RISE))
    return (torch.log1p(u * torch.expm1(rise)) / rise).clamp(0.0, 1.0)


def cell_masses(energy: Tensor, width: Tensor, polynomial: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return the mass of each cell by the rule of degree 9, and the estimated error of that mass."""
    left, right = energy[:, :-1], energy[:, 1:]
    ends = torch.exp(left) + torch.exp(right)
    points, weights = (part[:-1] for part in _rule(width))
    inner = _exp(left + rise_at(polynomial, points))  # (5, N, K - 1)
    mass = _KRONROD_END * ends + (weights * inner).sum(0)
    coarse = _LOBATTO_END * ends + _LOBATTO_INNER * (inner[1] + inner[3])
    gap = (mass - coarse).abs()
    # the gap estimates the error of degree 5; scale it to degree 9 as in QUADPACK
    return width * mass, width * gap * (gap / mass.clamp(min=_TINY)).clamp(max=1.0).sqrt()


def rule() -> Rule:
    """Return the constants of the integration for C."""
    return Rule(_POINTS, _KRONROD, _KRONROD_END, _LOBATTO_INNER, _LOBATTO_END, _MAX_EXPONENT, _TINY, _MIN_WIDTH_RATIO)


def tail_mass(energy: Tensor, slope: Tensor, ds: Tensor, distance: Tensor | float = 0.0) -> Tensor:
    """Return the mass beyond an outer node, starting ``-distance >= 0`` further out.

    With the outward score :math:`g` (``slope``) and :math:`k = -\\partial_x s > 0`, the tail is Gaussian:
    :math:`e^E \\sqrt{\\pi / 2k}\\; \\mathrm{erfcx}(-g / \\sqrt{2 k})`. If :math:`k \\le 0`, it is exponential,
    :math:`-e^E / g`, or infinite if :math:`g \\ge 0`.
    """
    ds = ds.clamp(max=0.0)
    slope, energy = slope - ds * distance, energy - slope * distance + 0.5 * ds * torch.as_tensor(distance) ** 2
    bends, falls = ds < -1e-12, slope < -1e-12
    root = torch.sqrt(-2.0 * torch.where(bends, ds, -1.0))
    gaussian = math.sqrt(math.pi) / root * torch.special.erfcx(-slope / root)
    exponential = -1.0 / torch.where(falls, slope, -1.0)
    return torch.exp(energy) * torch.where(bends, gaussian, torch.where(falls, exponential, math.inf))
