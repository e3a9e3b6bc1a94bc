"""The density of a function of one normal variable, which need not be monotone: what autoregressive encoders draw from.

With :math:`h(\\epsilon) = \\epsilon + \\sum_i w_i \\tanh(a_i + v_i \\epsilon)` and :math:`\\epsilon \\sim N(0, 1)`,

.. math:: q(u) = \\sum_{\\epsilon:\\, h(\\epsilon) = u} \\frac{N(\\epsilon; 0, 1)}{|h'(\\epsilon)|}

over all the places where :math:`h` takes the value. They lie within :math:`\\sum_i |w_i|` of :math:`u`. Cells that are
narrow beside what a tanh bends over are cut where :math:`h` turns, so that there is at most one in each: where the
slope changes its sign, and where it comes nearest to zero in between, if it has the other sign there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from arcsm.errors import NonFiniteError

_CELLS = 4  # for a unit of v_i * epsilon, over which a tanh bends
_BEYOND = 0.5  # that the outermost cells reach farther than a place can be
_MOST_CELLS = 1 << 14  # of one map; trained ones have some hundreds
_AT_ONCE = 1 << 23  # numbers
_HALVINGS = 52  # of a cell
_FLATTEST = math.sqrt(torch.finfo(torch.float64).eps)  # slope that rounding of a place leaves of one that is zero


@torch.no_grad()
def log_density(u: Tensor, inner: Tensor, of_noise: Tensor, output: Tensor) -> Tensor:
    """:math:`\\log q(u)` in nats for maps of one normal variable each, ``(M,)``; NaN where :math:`u` is no number.

    It is computed in double precision: a value that is rounded across a turn of its map loses nearly all of its
    density.

    Arguments:
        u: Where, ``(M,)``.
        inner: :math:`a`, ``(M, U)``.
        of_noise: :math:`v`, ``(M, U)``.
        output: :math:`w`, ``(M, U)``.

    Raises:
        NonFiniteError: (a ``ValueError``) for weights that are NaN, infinite, or so large that no map has a grid.

    Example:
        >>> u, zero = torch.tensor([0.0, 2.0]), torch.zeros(2, 1)  # without a tanh, the standard normal itself
        >>> log_density(u, zero, zero, zero)
        tensor([-0.9189, -2.9189])
        >>> fold = torch.full((2, 1), 2.0), torch.full((2, 1), -3.0)  # e - 3 tanh(2 e): three places, and one
        >>> log_density(torch.tensor([0.0, 6.0]), zero, *fold)
        tensor([ -2.4230, -41.4189])
    """
    known = u.isfinite()
    reach = output.abs().sum(-1) + _BEYOND
    wildness = reach * of_noise.abs().amax(-1)
    if not bool((wildness + inner.sum(-1)).isfinite().all() & (2.0 * _CELLS * wildness < _MOST_CELLS).all()):
        raise NonFiniteError(f"the maps of the noise are too wild, with slopes up to {float(wildness.max()):.1e}")
    counts = torch.exp2(torch.ceil(torch.log2(2.0 * _CELLS * (wildness + 1.0)))).int()  # few different ones
    found = torch.full_like(u, math.nan)
    for count in counts[known].unique().tolist():
        rows = torch.nonzero(known & (counts == count)).squeeze(1)
        for at in rows.split(max(1, _AT_ONCE // (count * inner.shape[-1]))):
            maps = _Maps(*(t[at].double() for t in (inner, of_noise, output)))
            found[at] = _sum_over_places(u[at].double(), maps, reach[at].double(), count).to(u)
    return found


class _Maps(NamedTuple):
    inner: Tensor  # (M, U) each
    of_noise: Tensor
    output: Tensor

    def some(self, row: Tensor) -> _Maps:
        return _Maps(*(t[row] for t in self))

    def at(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """:math:`h, h', h''`, ``(M, G)`` each, at ``(M, G)``."""
        bent = torch.tanh_(self.inner.unsqueeze(1) + noise.unsqueeze(-1) * self.of_noise.unsqueeze(1))  # (M, G, U)
        value = noise + (bent @ self.output.unsqueeze(-1)).squeeze(-1)
        left = 1.0 - bent.square()  # tanh'
        slope = 1.0 + (left @ (self.output * self.of_noise).unsqueeze(-1)).squeeze(-1)
        curve = -2.0 * (left.mul_(bent) @ (self.output * self.of_noise.square()).unsqueeze(-1)).squeeze(-1)
        return value, slope, curve

    def one(self, order: int, noise: Tensor) -> Tensor:
        """A derivative, or with order 0 the value, ``(M,)``, at ``(M,)``."""
        return self.at(noise.unsqueeze(1))[order].squeeze(1)


class _Cells(NamedTuple):
    row: Tensor  # (C,) of which map
    left: Tensor  # (C,)
    right: Tensor  # (C,)

    @classmethod
    def of_grid(cls, edges: Tensor, chosen: Tensor) -> _Cells:
        """Cells ``(M, G)`` between edges ``(M, G + 1)``."""
        row, cell = torch.nonzero(chosen, as_tuple=True)
        return cls(row, edges[row, cell], edges[row, cell + 1])

    def some(self, chosen: Tensor) -> _Cells:
        return _Cells(*(t[chosen] for t in self))

    def with_others(self, others: _Cells) -> _Cells:
        return _Cells(*(torch.cat(pair) for pair in zip(self, others, strict=True)))

    def cut(self, at: Tensor) -> _Cells:
        """Both parts of each."""
        return _Cells(self.row, self.left, at).with_others(_Cells(self.row, at, self.right))

    def zero(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Where functions that change their sign in their cells do so, ``(C,)``, by halving."""
        left, right = self.left, self.right
        sign = function(left) < 0.0
        for _ in range(_HALVINGS):
            middle = 0.5 * (left + right)
            same = (function(middle) < 0.0) == sign
            left, right = torch.where(same, middle, left), torch.where(same, right, middle)
        return 0.5 * (left + right)

    def changes(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Whether the signs at both ends differ, ``(C,)``."""
        return (function(self.left) < 0.0) != (function(self.right) < 0.0)


def _sum_over_places(u: Tensor, maps: _Maps, reach: Tensor, count: int) -> Tensor:
    """The logarithm of the sum of the densities of all places, ``(M,)``."""
    cells = _with_a_place(u, maps, reach, count)
    own = maps.some(cells.row)
    place = cells.zero(lambda noise: own.one(0, noise) - u[cells.row])
    slope = own.one(1, place).abs().clamp(min=_FLATTEST)
    log_share = -0.5 * (place.square() + math.log(2.0 * math.pi)) - slope.log()
    largest = torch.full_like(u, -math.inf).scatter_reduce(0, cells.row, log_share, "amax")
    return largest + torch.zeros_like(u).index_add(0, cells.row, torch.exp(log_share - largest[cells.row])).log()


def _with_a_place(u: Tensor, maps: _Maps, reach: Tensor, count: int) -> _Cells:
    """Cells in which the map is monotone and takes the value."""
    edges = u.unsqueeze(1) + reach.unsqueeze(1) * torch.linspace(-1.0, 1.0, count + 1).to(u)
    value, slope, curve = maps.at(edges)
    below, falls = value < u.unsqueeze(1), slope < 0.0
    turns = falls[:, 1:] != falls[:, :-1]
    towards_zero = torch.where(falls, curve, -curve) > 0.0
    nears = ~turns & towards_zero[:, :-1] & ~towards_zero[:, 1:]  # there and back
    plain = _Cells.of_grid(edges, (below[:, 1:] != below[:, :-1]) & ~turns & ~nears)
    near, turning = _Cells.of_grid(edges, nears), _Cells.of_grid(edges, turns)

    halves = near.cut(near.zero(_of(maps, 2, near)))
    turn = halves.changes(_of(maps, 1, halves))
    turning = turning.with_others(halves.some(turn))
    pieces = turning.cut(turning.zero(_of(maps, 1, turning))).with_others(halves.some(~turn))
    off = _of(maps, 0, pieces)
    return plain.with_others(pieces.some(pieces.changes(lambda noise: off(noise) - u[pieces.row])))


def _of(maps: _Maps, order: int, cells: _Cells) -> Callable[[Tensor], Tensor]:
    """A derivative of the maps that cells are of."""
    own = maps.some(cells.row)
    return lambda noise: own.one(order, noise)
