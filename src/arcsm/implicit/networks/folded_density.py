"""The density of a non-monotone ("folded") function of one normal variable, as autoregressive encoders sample from it.

With :math:`h(\\epsilon) = \\epsilon + \\sum_i w_i \\tanh(a_i + v_i \\epsilon)` and :math:`\\epsilon \\sim N(0, 1)`,

.. math:: q(u) = \\sum_{\\epsilon:\\, h(\\epsilon) = u} \\frac{N(\\epsilon; 0, 1)}{|h'(\\epsilon)|}

sums over all preimages of :math:`u`, which lie within :math:`\\sum_i |w_i|` of it. A grid of cells that are narrow
compared with the bend of a tanh is refined until :math:`h` is monotone in each cell, so that a cell holds at most one
preimage. Cells are split at zeros of :math:`h'`, and at the extremum of :math:`h'` closest to zero if a zero may hide
between two edges of equal sign.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from arcsm.errors import NonFiniteError

_CELLS_PER_BEND = 4  # a tanh bends over a unit of v_i * epsilon
_GRID_MARGIN = 0.5  # beyond the range of preimages
_MAX_CELLS = 1 << 14  # of one map; trained maps have some hundreds
_MAX_ELEMENTS = 1 << 23  # of an intermediate tensor
_BISECTIONS = 52
_MIN_SLOPE = math.sqrt(torch.finfo(torch.float64).eps)  # a zero slope, up to rounding of the preimage


@torch.no_grad()
def log_density(u: Tensor, inner: Tensor, noise_weight: Tensor, output_weight: Tensor) -> Tensor:
    """Return :math:`\\log q(u)` in nats, one map for each value, ``(M,)``; NaN where :math:`u` is not finite.

    The weights :math:`a, v, w` are ``(M, U)`` each; if they are NaN, infinite, or too large for a grid, a
    ``NonFiniteError`` is raised. The computation is in double precision: a value rounded across a fold of its map would
    lose nearly all density.
    """
    finite = u.isfinite()
    radius = output_weight.abs().sum(-1) + _GRID_MARGIN
    bends = radius * noise_weight.abs().amax(-1)
    bounded = (2.0 * _CELLS_PER_BEND * bends < _MAX_CELLS).all()
    if not bool((bends + inner.sum(-1)).isfinite().all() & bounded):
        raise NonFiniteError(f"the maps of the noise are too steep, with slopes up to {float(bends.max()):.1e}")
    counts = torch.exp2(torch.ceil(torch.log2(2.0 * _CELLS_PER_BEND * (bends + 1.0)))).int()  # few distinct powers
    log_q = torch.full_like(u, math.nan)
    for count in counts[finite].unique().tolist():
        rows = torch.nonzero(finite & (counts == count)).squeeze(1)
        for part in rows.split(max(1, _MAX_ELEMENTS // (count * inner.shape[-1]))):
            maps = _Maps(*(t[part].double() for t in (inner, noise_weight, output_weight)))
            log_q[part] = _log_sum_over_preimages(u[part].double(), maps, radius[part].double(), count).to(u)
    return log_q


class _Cells(NamedTuple):
    """Intervals of noise, ``(C,)`` each."""

    row: Tensor  # index of the map
    left: Tensor
    right: Tensor

    @classmethod
    def from_grid(cls, edges: Tensor, mask: Tensor) -> Self:
        """Return the cells of a mask ``(M, G)`` between edges ``(M, G + 1)``."""
        row, cell = torch.nonzero(mask, as_tuple=True)
        return cls(row, edges[row, cell], edges[row, cell + 1])

    def select(self, mask: Tensor) -> Self:
        return type(self)(*(t[mask] for t in self))

    def concatenate(self, other: Self) -> Self:
        return type(self)(*(torch.cat(pair) for pair in zip(self, other, strict=True)))

    def split(self, at: Tensor) -> Self:
        return self._replace(right=at).concatenate(self._replace(left=at))

    def bisect(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return a zero of the function in each cell, ``(C,)``; it must change sign there."""
        left, right = self.left, self.right
        sign = function(left) < 0.0
        for _ in range(_BISECTIONS):
            middle = 0.5 * (left + right)
            same = (function(middle) < 0.0) == sign
            left, right = torch.where(same, middle, left), torch.where(same, right, middle)
        return 0.5 * (left + right)

    def changes_sign(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        return (function(self.left) < 0.0) != (function(self.right) < 0.0)


class _Maps(NamedTuple):
    """Weights of :math:`h`, ``(M, U)`` each."""

    inner: Tensor
    noise_weight: Tensor
    output_weight: Tensor

    def evaluate(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return :math:`h, h', h''`, ``(M, G)`` each, at ``(M, G)``."""
        weight = self.noise_weight
        hidden = torch.tanh_(self.inner.unsqueeze(1) + noise.unsqueeze(-1) * weight.unsqueeze(1))  # (M, G, U)
        value = noise + (hidden @ self.output_weight.unsqueeze(-1)).squeeze(-1)
        dtanh = 1.0 - hidden.square()
        slope = 1.0 + (dtanh @ (self.output_weight * weight).unsqueeze(-1)).squeeze(-1)
        curvature = -2.0 * (dtanh.mul_(hidden) @ (self.output_weight * weight.square()).unsqueeze(-1)).squeeze(-1)
        return value, slope, curvature

    def derivative(self, order: int, cells: _Cells) -> Callable[[Tensor], Tensor]:
        """Return a derivative (order 0: the value) as a function of one noise value for each cell, ``(C,)``."""
        maps = _Maps(*(t[cells.row] for t in self))
        return lambda noise: maps.evaluate(noise.unsqueeze(1))[order].squeeze(1)


def _log_sum_over_preimages(u: Tensor, maps: _Maps, radius: Tensor, count: int) -> Tensor:
    cells = _cells_with_preimage(u, maps, radius, count)
    value = maps.derivative(0, cells)
    preimage = cells.bisect(lambda noise: value(noise) - u[cells.row])
    slope = maps.derivative(1, cells)(preimage).abs().clamp(min=_MIN_SLOPE)
    log_terms = -0.5 * (preimage.square() + math.log(2.0 * math.pi)) - slope.log()
    largest = torch.full_like(u, -math.inf).scatter_reduce(0, cells.row, log_terms, "amax")
    return largest + torch.zeros_like(u).index_add(0, cells.row, torch.exp(log_terms - largest[cells.row])).log()


def _cells_with_preimage(u: Tensor, maps: _Maps, radius: Tensor, count: int) -> _Cells:
    """Return cells in which the map is monotone and takes the value ``u``."""
    edges = u.unsqueeze(1) + radius.unsqueeze(1) * torch.linspace(-1.0, 1.0, count + 1).to(u)
    value, slope, curvature = maps.evaluate(edges)
    below, falling = value < u.unsqueeze(1), slope < 0.0
    turns = falling[:, 1:] != falling[:, :-1]
    towards_zero = torch.where(falling, curvature, -curvature) > 0.0
    may_turn_twice = ~turns & towards_zero[:, :-1] & ~towards_zero[:, 1:]  # the slope approaches zero and recedes
    monotone = _Cells.from_grid(edges, (below[:, 1:] != below[:, :-1]) & ~turns & ~may_turn_twice)
    near, turning = _Cells.from_grid(edges, may_turn_twice), _Cells.from_grid(edges, turns)

    halves = near.split(near.bisect(maps.derivative(2, near)))
    turn = halves.changes_sign(maps.derivative(1, halves))
    turning = turning.concatenate(halves.select(turn))
    pieces = turning.split(turning.bisect(maps.derivative(1, turning))).concatenate(halves.select(~turn))
    value_at = maps.derivative(0, pieces)
    return monotone.concatenate(pieces.select(pieces.changes_sign(lambda noise: value_at(noise) - u[pieces.row])))
