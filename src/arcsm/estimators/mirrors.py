"""Densities mirrored at the ends of a range: noise has smoothed them, and they would leak out."""

from typing import Protocol

import torch
from torch import Tensor

_NEGLIGIBLE = -12.0  # nats, relative to a density


class LogDensity(Protocol):
    """Log densities of some of the conditionals, at numbers ``(n,)`` or averaged within ``half (n,)`` of them."""

    def __call__(self, x: Tensor, rows: Tensor, half: Tensor | None = None) -> Tensor: ...


def add_images(
    log_density: Tensor, evaluate: LogDensity, x: Tensor, ends: Tensor, reach: Tensor, half: Tensor
) -> Tensor:
    """Add the densities of mirror images to those of numbers within the ends; others stay as they are.

    Arguments:
        log_density: Of the numbers, ``(N,)``, averaged within ``half`` of them.
        evaluate: The log density at other numbers.
        x: The numbers, ``(N,)``.
        ends: The ends of the range of each, ``(2, N)``; NaN if there are none.
        reach: How far from an end mirror images count, ``(N,)``.
        half: Half of the step of each grid, ``(N,)``; 0 for the density at a point.
    """
    near = (ends[0] < x) & (x < ends[1]) & ((x - ends).abs() < reach)
    which, rows = near.nonzero(as_tuple=True)
    if not len(rows):
        return log_density
    end, step = ends[which, rows], half[rows]
    image = 2.0 * end - x[rows]
    found = evaluate(image + (end - image).sign() * step, rows)  # where the image's cell is nearest to the end
    wide = ((step > 0.0) & (found > log_density[rows] + _NEGLIGIBLE)).nonzero()[:, 0]
    if len(wide):
        found[wide] = evaluate(image[wide], rows[wide], step[wide])
    terms = torch.stack([log_density, *torch.full_like(ends, -torch.inf)])
    terms[1 + which, rows] = found
    return terms.logsumexp(0)
