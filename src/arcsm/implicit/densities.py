"""The density of a function of one normal variable, which need not be monotone: what autoregressive encoders draw from.

With :math:`h(\\epsilon) = \\epsilon + \\sum_i w_i \\tanh(a_i + v_i \\epsilon)` and :math:`\\epsilon \\sim N(0, 1)`,

.. math:: q(u) = \\sum_{\\epsilon:\\, h(\\epsilon) = u} \\frac{N(\\epsilon; 0, 1)}{|h'(\\epsilon)|}

over all the places where :math:`h` takes the value. They lie within :math:`\\sum_i |w_i|` of :math:`u`, and between two
neighbours among the points where :math:`h` turns there is at most one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_CELLS = 4  # for a unit of v_i * epsilon, over which a tanh bends
_MOST_CELLS = 1 << 20
_AT_ONCE = 1 << 24  # numbers
_HALVINGS = {torch.float32: 30, torch.float64: 60}  # of a cell, until rounding is all that is left
_BEYOND = 0.5  # that the outermost cells reach farther than a place can be


@torch.no_grad()
def log_density(u: Tensor, inner: Tensor, of_noise: Tensor, output: Tensor) -> Tensor:
    """:math:`\\log q(u)` in nats for maps of one normal variable each, ``(M,)``.

    Arguments:
        u: Where, ``(M,)``.
        inner: :math:`a`, ``(M, U)``.
        of_noise: :math:`v`, ``(M, U)``.
        output: :math:`w`, ``(M, U)``.

    Raises:
        ValueError: for weights that are NaN, infinite, or so large that the map is too wild to be looked at.

    Example:
        >>> u, zero = torch.tensor([0.0, 2.0]), torch.zeros(2, 1)  # without a tanh, the standard normal itself
        >>> log_density(u, zero, zero, zero)
        tensor([-0.9189, -2.9189])
        >>> fold = torch.full((2, 1), 2.0), torch.full((2, 1), -3.0)  # e - 3 tanh(2 e): three places, and one
        >>> log_density(torch.tensor([0.0, 6.0]), zero, *fold)
        tensor([ -2.4230, -41.4189])
    """
    reach = output.abs().sum(-1) + _BEYOND
    wildness = float((reach.max() * of_noise.abs().max()).nan_to_num(math.inf)) if len(u) else 0.0
    cells = math.ceil(min(2.0 * _CELLS * wildness, 2.0 * _MOST_CELLS)) + _CELLS
    if cells > _MOST_CELLS:
        raise ValueError(f"the maps of the noise are too wild: slopes up to {wildness:.1e}; is the encoder trained?")
    parts = [u[:0]]
    for at in torch.arange(len(u)).split(max(1, _AT_ONCE // (cells * inner.shape[-1]))):
        maps = _Maps(inner[at], of_noise[at], output[at])
        parts.append(_sum_over_places(u[at], maps, reach[at], cells))
    return torch.cat(parts)


class _Maps(NamedTuple):
    inner: Tensor  # (M, U) each
    of_noise: Tensor
    output: Tensor

    def some(self, at: Tensor) -> _Maps:
        return _Maps(*(t[at] for t in self))

    def at(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """:math:`h` and :math:`h'`, ``(M, G)`` each, at ``(M, G)``."""
        bent = torch.tanh_(self.inner.unsqueeze(1) + noise.unsqueeze(-1) * self.of_noise.unsqueeze(1))  # (M, G, U)
        value = noise + (bent @ self.output.unsqueeze(-1)).squeeze(-1)
        steepest = self.output * self.of_noise
        return value, 1.0 + steepest.sum(-1, keepdim=True) - (bent.square_() @ steepest.unsqueeze(-1)).squeeze(-1)

    def value(self, noise: Tensor) -> Tensor:
        """:math:`h`, ``(M,)`` to ``(M,)``."""
        return self.at(noise.unsqueeze(1))[0].squeeze(1)

    def slope(self, noise: Tensor) -> Tensor:
        """:math:`h'`, ``(M,)`` to ``(M,)``."""
        return self.at(noise.unsqueeze(1))[1].squeeze(1)


def _sum_over_places(u: Tensor, maps: _Maps, reach: Tensor, cells: int) -> Tensor:
    """Of the densities that all places contribute, the logarithm, ``(M,)``."""
    edges = u.unsqueeze(1) + reach.unsqueeze(1) * torch.linspace(-1.0, 1.0, cells + 1).to(u)
    value, slope = maps.at(edges)
    below, falls = value < u.unsqueeze(1), slope < 0.0
    turns, crosses = falls[:, 1:] != falls[:, :-1], below[:, 1:] != below[:, :-1]
    row, cell = torch.nonzero(crosses & ~turns, as_tuple=True)
    found = [(row, edges[row, cell], edges[row, cell + 1])]  # each with one place inside
    row, cell = torch.nonzero(turns, as_tuple=True)
    left, right = edges[row, cell], edges[row, cell + 1]
    middle = _halved(maps.some(row).slope, left, right)
    between = maps.some(row).value(middle) < u[row]
    for ends, crosses in (((left, middle), below[row, cell] != between),
                          ((middle, right), between != below[row, cell + 1])):  # fmt: skip
        found.append((row[crosses], ends[0][crosses], ends[1][crosses]))
    row, left, right = (torch.cat(parts) for parts in zip(*found, strict=True))
    own = maps.some(row)
    place = _halved(lambda noise: own.value(noise) - u[row], left, right)
    slope = own.slope(place).abs().clamp(min=torch.finfo(u.dtype).tiny)
    log_share = -0.5 * (place.square() + math.log(2.0 * math.pi)) - slope.log()
    largest = torch.full_like(u, -math.inf).scatter_reduce(0, row, log_share, "amax")
    return largest + torch.zeros_like(u).index_add(0, row, torch.exp(log_share - largest[row])).log()


def _halved(function: Callable[[Tensor], Tensor], left: Tensor, right: Tensor) -> Tensor:
    """Where functions, ``(M,)`` to ``(M,)``, change their sign between two points each, ``(M,)``."""
    sign = function(left) < 0.0
    for _ in range(_HALVINGS[left.dtype]):
        middle = 0.5 * (left + right)
        same = (function(middle) < 0.0) == sign
        left, right = torch.where(same, middle, left), torch.where(same, right, middle)
    return 0.5 * (left + right)
