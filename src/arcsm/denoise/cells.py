"""Densities of the flow in cells: each holds a known probability of the prior, and a posterior refines them.

The flow carries quantiles from the largest noise down to the data, so the integral of a likelihood :math:`L` over a
prior with the quantiles :math:`x(v)` is one over probabilities:

.. math:: \\int q(x)\\, L(x)\\, dx = \\int_0^1 L(x(v))\\, dv

It is computed by the midpoint rule. Cells are split where the integrand bends, as it does beside a gap between modes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from arcsm.conditionals.conditionals import Conditionals

_HALF_CELLS = 64  # half the number of cells at first
_MAX_STANDARD_DEVIATIONS = 6.0  # of a Gaussian, covered by the cells
_TAIL = 0.5 * math.erfc(_MAX_STANDARD_DEVIATIONS / math.sqrt(2.0))  # probability of an outer cell at first
_MAX_TAILS = 1e-3  # of a posterior in the outer two cells
_PARTS = 5  # of a split cell; the middle one keeps its median
_SPLITS = 12  # cells of a row that are split at a time
_MAX_ROUNDS = 10
_TOLERANCE = 4e-3  # of the estimated error of the mass and, in standard deviations, of the mean of a posterior

#: Maps values ``(n, M)`` for the conditionals ``rows (n,)`` to log likelihoods in nats, ``(n, M)``.
RowLogLikelihood = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Cells:
    """``M`` cells of ``N`` priors, in order. Cells of width zero fill rows that need fewer."""

    start: Tensor  # (N, M) probability of the prior below each cell, in double precision
    width: Tensor  # (N, M) probability in it
    x: Tensor  # (N, M) its median
    log_likelihood: Tensor  # (N, M) at the medians, in double precision

    def shares(self) -> Tensor:
        """Return the probability of each cell under the posterior, ``(N, M)``."""
        return torch.softmax(self.log_likelihood + self.width.log(), 1)

    def tails(self) -> Tensor:
        """Return the probability of the tails, which cells do not resolve, under the posterior, ``(N,)``."""
        middle = self.start + 0.5 * self.width
        return (self.shares() * (torch.minimum(middle, 1.0 - middle) < _TAIL)).sum(1)

    def errors(self) -> Tensor:
        """Estimate the error of the midpoint rule in each cell, ``(N, M)``, for the mass and the mean together.

        It is the distance of the integrand from the line through its values in the neighbouring cells.
        """
        share, x, middle = self.shares(), self.x.double(), self.start + 0.5 * self.width
        offset = x - (share * x).sum(1, keepdim=True)
        deviation = (share * offset.square()).sum(1, keepdim=True).sqrt().clamp(min=1e-12)
        density = share / self.width
        along = (middle[:, 1:-1] - middle[:, :-2]) / (middle[:, 2:] - middle[:, :-2])
        total = torch.zeros_like(share)
        for integrand in (density, density * offset / deviation):
            line = torch.lerp(integrand[:, :-2], integrand[:, 2:], along)
            line = torch.cat([integrand[:, 1:2], line, integrand[:, -2:-1]], 1)
            total = total + self.width * (integrand - line).abs()
        return total

    def select(self, rows: Tensor) -> Self:
        """Return the cells of some rows, an index or a mask."""
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def split(self, worst: Tensor, medians: Callable[[Tensor], Tensor], likelihood: Callable[[Tensor], Tensor]) -> Self:
        """Split the cells ``worst (N, K)``, given the functions for the new ones, and return all cells in order."""
        start, width = self.start.gather(1, worst), self.width.gather(1, worst) / _PARTS
        others = [part for part in range(_PARTS) if part != _PARTS // 2]
        starts = torch.cat([start + part * width for part in others], 1)
        widths = width.repeat(1, len(others))
        x = medians(starts + 0.5 * widths)
        middle = replace(
            self,
            start=self.start.scatter(1, worst, start + (_PARTS // 2) * width),
            width=self.width.scatter(1, worst, width),
        )
        return middle._joined(replace(self, start=starts, width=widths, x=x, log_likelihood=likelihood(x)))

    def _joined(self, others: Self) -> Self:
        order = torch.cat([self.start, others.start], 1).argsort(1)
        pairs = {field.name: (getattr(self, field.name), getattr(others, field.name)) for field in fields(self)}
        return replace(self, **{name: torch.cat(pair, 1).gather(1, order) for name, pair in pairs.items()})

    def padded(self, count: int) -> Self:
        """Return ``count`` cells, the last ones without width."""
        missing = count - self.x.shape[1]
        last = {field.name: getattr(self, field.name)[:, -1:].expand(-1, missing) for field in fields(self)}
        last |= {"start": last["start"] + last["width"], "width": torch.zeros_like(last["width"])}
        return replace(self, **{name: torch.cat([getattr(self, name), value], 1) for name, value in last.items()})


def refined_cells(prior: Conditionals, log_likelihood: RowLogLikelihood) -> tuple[Cells, Tensor]:
    """Return cells of ``N`` priors, refined for the posteriors, and for which rows they are accurate, ``(N,)``.

    They are not where a posterior lies in the tails of the prior, or where cells stay too coarse after all rounds.
    """

    def likelihood(x: Tensor, rows: Tensor) -> Tensor:
        return log_likelihood(x, rows).double()

    medians, rows = _medians(prior), torch.arange(len(prior), device=prior.projection.device)
    edges = _first_edges(rows.device).expand(len(rows), -1)
    start, width = edges[:, :-1], edges.diff(dim=1)
    x = medians(rows, start + 0.5 * width)
    cells = Cells(start, width, x, likelihood(x, rows))
    accurate, finished = torch.ones_like(rows, dtype=torch.bool), []
    for round_ in range(_MAX_ROUNDS + 1):
        errors = cells.errors()
        coarse, resolved = errors.sum(1) > _TOLERANCE, cells.tails() < _MAX_TAILS
        resolved = resolved & ~coarse if round_ == _MAX_ROUNDS else resolved
        accurate[rows] = resolved
        coarse = coarse & resolved
        finished.append((rows[~coarse], cells.select(~coarse)))
        rows, cells = rows[coarse], cells.select(coarse)
        if not len(rows):
            break
        cells = cells.split(
            errors[coarse].topk(_SPLITS, 1).indices,
            partial(medians, rows),
            partial(likelihood, rows=rows),
        )
    order = torch.cat([part for part, _ in finished]).argsort()
    count = max(part.x.shape[1] for _, part in finished)
    padded = [part.padded(count) for _, part in finished]
    joined = {field.name: torch.cat([getattr(part, field.name) for part in padded])[order] for field in fields(Cells)}
    return Cells(**joined), accurate


def _first_edges(device: torch.device) -> Tensor:
    """Return the edges of the first cells as probabilities, ``(M + 1,)``.

    Half of the edges are evenly spaced in probability, so that no mode is missed. The other half are evenly spaced in
    the quantiles of a Gaussian, so that the cells cover the tails.
    """
    span, half = _MAX_STANDARD_DEVIATIONS, _HALF_CELLS
    by_distance = torch.special.ndtr(torch.linspace(-span, span, half + 1, dtype=torch.float64))[1:-1]
    by_probability = torch.linspace(0.0, 1.0, half + 2, dtype=torch.float64)
    return torch.cat([by_probability, by_distance]).sort().values.to(device)


def _medians(conditionals: Conditionals) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function that maps rows ``(n,)`` and probabilities ``(n, M)`` to quantiles of the flow, ``(n, M)``.

    They are quantiles at the largest noise, carried down.
    """
    density = conditionals.density(slice(None), conditionals.path[0])

    def medians(rows: Tensor, v: Tensor) -> Tensor:
        top = density.select(rows).icdf(v, tolerance=1e-4)
        cells = replace(conditionals, projection=conditionals.projection[rows].repeat_interleave(v.shape[1], 0))
        return cells.carry(top.to(cells.projection).flatten(), cells.accuracy.tol, with_slopes=False).x.view_as(v)

    return medians
