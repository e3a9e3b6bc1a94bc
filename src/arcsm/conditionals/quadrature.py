"""One-dimensional integration of densities that are known by their score alone.

A conditional gives :math:`s = E'` and :math:`s' = E''` at any point; wanted are :math:`\\log \\int e^E`, the CDF, its
inverse and moments. Nodes are placed here, adaptively; :mod:`arcsm.conditionals.piecewise` does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from arcsm.conditionals.piecewise import PiecewiseDensity, cell_masses, polynomial_of, second_derivative, tail_mass

__all__ = ["OutsideFunction", "PiecewiseDensity", "ScoreFunction", "doubt", "evaluated", "from_nodes", "integrate"]

#: ``score(x, rows)``: values ``(n, K)`` of the conditionals numbered ``rows (n,)`` to score and derivative, ``(n, K)``.
ScoreFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
#: ``outside(x)``: values ``(*)`` so far out that score and derivative, ``(*)`` each, are known without a network.
OutsideFunction = Callable[[Tensor], tuple[Tensor, Tensor]]
_NEW_NODES = 12  # nodes added to a row at a time: twelve cells split in two, or four in four
_OUTWEIGHED = 0.01  # of the worst cell's contribution to the error
_WIDEST_CELL = 0.8  # standard deviations; a wider cell with mass in it might hide a narrow mode
_LARGEST_GRADING = 32.0  # a cell twice as wide as its neighbour may be wrong by 2^5 times as much
_LIKELY = 0.1  # of the signs of an error counts: sums of it are near the errors of trained heads, and seldom below
_CLOSE = 0.25  # of a cell's width: a node that close to the anchor moves there


def integrate(
    score: ScoreFunction,
    nodes: Tensor,
    anchor: Tensor | None = None,
    tol: float = 1e-5,
    max_evaluations: int = 512,
    outside: OutsideFunction | None = None,
) -> PiecewiseDensity:
    """Adaptive integration of ``N`` conditionals from their scores.

    A coarse pass over ``nodes`` finds the mass. Then, until the estimated error of the log density is below ``tol``,
    the cells that contribute most to it are split. Two things make a cell contribute: the mass in it may be
    off, and the step of the log density across it may be off, which shifts the weight of *everything* beyond it. So
    the switch of the score between two far modes is found although there is no mass anywhere near it.

    Arguments:
        score: The conditionals; see :data:`ScoreFunction`.
        nodes: Where to start, ``(N, K0)`` or ``(K0,)`` with ``K0 >= 2``, ascending. The outer two must bracket the
            modes; beyond them the score is taken as linear, its value and slope being those at the outer nodes.
        anchor: Points ``(N,)`` at which the density will be asked for. They become nodes, and the error is that of
            the log density there (without them, at the mode).
        tol: Error of the log density in nats to aim for.
        max_evaluations: Largest number of evaluations of the score for one conditional.
        outside: Where the outer two nodes are so far out that their scores are known, what they are: see
            :data:`OutsideFunction`. They are not evaluated then.

    Returns:
        The densities, in double precision, with error estimates and flags.

    Raises:
        ValueError: for nodes that are not ascending, or more of them than may be evaluated.

    Example:
        >>> gaussian = lambda x, rows: (-(x - 3.0), torch.full_like(x, -1.0))
        >>> density = integrate(gaussian, torch.linspace(-50.0, 50.0, 9).expand(1, 9))
        >>> height = density.log_prob(torch.tensor([[3.0]], dtype=torch.float64)).exp().item()
        >>> round(height * math.sqrt(2.0 * math.pi), 6)
        1.0
    """
    nodes = torch.atleast_2d(nodes)
    if nodes.shape[1] < 2 or bool((nodes.diff(dim=1) <= 0).any()):
        raise ValueError("nodes: expected at least two ascending points a row")
    if anchor is not None:
        nodes = _with_anchor(nodes.expand(len(anchor), -1), anchor[:, None].to(nodes.dtype))
    known = 0 if outside is None else 2
    if nodes.shape[1] - known > max_evaluations:
        raise ValueError(
            f"max_evaluations: expected at least {nodes.shape[1] - known} for the starting nodes, got {max_evaluations}"
        )

    with torch.no_grad():
        rows = torch.arange(len(nodes), device=nodes.device)
        x = nodes
        s, ds = evaluated(score, x, rows, outside)
        finished: list[tuple[Tensor, PiecewiseDensity]] = []
        while True:
            density, inside, errors = _assess(x, s, ds, None if anchor is None else anchor[rows], tol, known)
            spare = min(_NEW_NODES, max_evaluations + known - x.shape[1])
            full = spare < 3
            done = torch.ones_like(density.converged) if full else density.converged
            if not finished and bool(done.all()):
                return density
            finished.append((rows[done], _select(density, done)))
            if bool(done.all()):
                return _reassemble(finished)
            keep = ~done
            rows, x, s, ds = rows[keep], x[keep], s[keep], ds[keep]
            likely = _errors(_select(density, keep), inside[keep], None if anchor is None else anchor[rows], _LIKELY)
            worst = torch.where(likely.sum(1, keepdim=True) > tol, likely, errors[keep])  # first things first
            x, s, ds = _split(score, rows, x, s, ds, worst, spare)


def from_nodes(x: Tensor, s: Tensor, ds: Tensor) -> PiecewiseDensity:
    """The densities that given nodes ``(N, K)``, scores and derivatives describe; differentiable by both."""
    return _assess(x, s, ds, None, math.inf)[0]


def doubt(density: PiecewiseDensity) -> Tensor:
    """How far a log density may be off, in nats, ``(N,)``, by what its scores and slopes say of each other.

    The estimate of :func:`integrate` asks moreover that no cell be wide, lest a narrow mode hide in it: this does not.
    """
    return _errors(density, torch.zeros_like(density.cells), None, 1.0).sum(1)


def evaluated(score: ScoreFunction, x: Tensor, rows: Tensor, outside: OutsideFunction | None) -> tuple[Tensor, Tensor]:
    """Scores and derivatives at nodes ``(N, K)``; at the outer two by ``outside``, where they are known."""
    if outside is None:
        return score(x, rows)
    s, ds = score(x[:, 1:-1], rows)
    (first, dfirst), (last, dlast) = outside(x[:, :1]), outside(x[:, -1:])
    return torch.cat([first, s, last], 1), torch.cat([dfirst, ds, dlast], 1)


def _with_anchor(nodes: Tensor, anchor: Tensor) -> Tensor:
    """Nodes ``(N, K)`` and one more, with the anchor ``(N, 1)`` among them.

    A node close to the anchor moves there and the new one goes into the middle of what is left of the cell: a very
    narrow cell would say nothing but the rounding of the score.
    """
    last = nodes.shape[1] - 1
    cell = (torch.searchsorted(nodes.contiguous(), anchor.contiguous(), right=True) - 1).clamp(0, last - 1)
    left, right = nodes.gather(1, cell), nodes.gather(1, cell + 1)
    close = _CLOSE * (right - left)
    on_left, on_right = (anchor - left).abs() < close, (right - anchor).abs() < close
    nearest = torch.where(on_left, cell, cell + 1)
    moves = (on_left | on_right) & (nearest > 0) & (nearest < last)
    moved = torch.where(moves, nodes.scatter(1, nearest, anchor), nodes)
    new = torch.where(moves, 0.5 * (anchor + torch.where(on_left, right, left)), anchor)
    return torch.cat([moved, new], 1).sort(1).values


# How good the nodes are ---------------------------------------------------------------------------------------------


def _assess(
    x: Tensor, s: Tensor, ds: Tensor, anchor: Tensor | None, tol: float, known: int = 0
) -> tuple[PiecewiseDensity, Tensor, Tensor]:
    """The densities on the nodes at hand; the error inside each cell, and all that comes of it, ``(N, K - 1)`` each.

    ``known`` is how many nodes cost no evaluation.
    """
    x, s, ds = x.double(), s.double(), ds.double()
    width = x.diff(dim=1)
    dds = second_derivative(width, s, ds)
    polynomial = polynomial_of(width, *((f[:, :-1], f[:, 1:]) for f in (s, ds, dds)))
    steps = sum(polynomial)
    energy = torch.cat([torch.zeros_like(x[:, :1]), torch.as_tensor(steps).cumsum(1)], 1)
    energy = energy - energy.detach().amax(1, keepdim=True)
    cells, missed = cell_masses(energy, width, polynomial)
    outer = slice(None, None, x.shape[1] - 1)  # the first node and the last
    tails = tail_mass(energy[:, outer], torch.stack([-s[:, 0], s[:, -1]], 1), ds[:, outer])
    log_mass = torch.log(cells.sum(1) + tails.sum(1))
    with torch.no_grad():
        share = cells / torch.exp(log_mass)[:, None]
        inside = missed / torch.exp(log_mass)[:, None] + share * _too_wide(x, share)
        error, converged = torch.zeros_like(log_mass), log_mass.isfinite()
        evaluations = torch.full_like(log_mass, x.shape[1] - known, dtype=torch.long)
        density = PiecewiseDensity(x, s, ds, dds, energy, cells, tails, log_mass, error, converged, evaluations)
        errors = _errors(density, inside, anchor, 1.0)
        error += errors.sum(1)
        converged &= error <= tol
    return density, inside, errors


def _errors(density: PiecewiseDensity, inside: Tensor, anchor: Tensor | None, caution: float) -> Tensor:
    """How much each cell contributes to the error, ``(N, K - 1)``: what is inside it and what its step shifts."""
    share = density.cells / torch.exp(density.log_mass)[:, None]
    off = _step_doubt(density.x.diff(dim=1), density.s, density.ds, density.dds, caution)
    beyond = _share_beyond(density.x, density.energy, density.cells, density.tails, off, anchor)
    return inside + share * off.clamp(max=1.0) + off * beyond


def _step_doubt(width: Tensor, s: Tensor, ds: Tensor, dds: Tensor, caution: float) -> Tensor:
    """How far the step of the log density over each cell may be off, in nats, ``(N, K - 1)``.

    Two signs of it. The rise of the score over a cell should be the mean of the slopes at its ends: by how much it is
    not says how little the cell is understood; where it is understood well, the rule is better than that by two more
    orders. And the rule should not differ much from the one that makes do without second derivatives. Either may be
    small by chance, seldom both. A tenth of them counts; where nothing is understood, with a ``caution`` of 1, all.
    """
    rise = s.diff(dim=1)
    slopes = width * 0.5 * (ds[:, :-1] + ds[:, 1:])
    gap = (rise - slopes).abs()
    size = rise.abs() + width * 0.5 * (ds[:, :-1].abs() + ds[:, 1:].abs())
    relative = (gap / size.clamp(min=1e-300)).clamp(max=1.0)
    by_curvature = width.square() * (0.5 * width * (dds[:, :-1] + dds[:, 1:]) - ds.diff(dim=1)) / 60.0
    doubt = (0.3 * width * gap * relative + by_curvature.abs()) * relative.clamp(_LIKELY, caution)
    # where they change sign a cell may look flawless by chance: no cell is better than its neighbours allow
    ratio = (width[:, 1:] / width[:, :-1].clamp(min=1e-300)).pow(5)
    from_left = doubt[:, :-1] * ratio.clamp(max=_LARGEST_GRADING)
    from_right = doubt[:, 1:] / ratio.clamp(min=1.0 / _LARGEST_GRADING)
    doubt[:, 1:] = torch.maximum(doubt[:, 1:], from_left)
    doubt[:, :-1] = torch.maximum(doubt[:, :-1], from_right)
    return doubt


def _too_wide(x: Tensor, share: Tensor) -> Tensor:
    """Whether cells are too wide, by the standard deviation of the density, to be sure of what is in them."""
    middle = 0.5 * (x[:, :-1] + x[:, 1:])
    mean = (share * middle).sum(1, keepdim=True)
    deviation = (share * (middle - mean).square()).sum(1, keepdim=True).sqrt()
    return (x.diff(dim=1) > _WIDEST_CELL * deviation).to(x.dtype)


def _share_beyond(
    x: Tensor, energy: Tensor, cells: Tensor, tails: Tensor, off: Tensor, anchor: Tensor | None
) -> Tensor:
    """Share of the mass that may lie beyond each cell, seen from the anchor (or the mode), ``(N, K - 1)``.

    "May": what lies beyond is counted with all that the steps on the way to it may be ``off (N, K - 1)`` in its
    favour, the rest with it against.
    """
    reference = energy.argmax(1) if anchor is None else (x - anchor[:, None]).abs().argmin(1)
    path = torch.cat([torch.zeros_like(x[:, :1]), off.cumsum(1)], 1)
    path = (path - path.gather(1, reference[:, None])).abs()  # (N, K) between each node and the reference
    path = torch.cat([path[:, :1], torch.maximum(path[:, :-1], path[:, 1:]), path[:, -1:]], 1)  # (N, K + 1)
    log_mass = torch.cat([tails[:, :1], cells, tails[:, 1:]], 1).clamp(min=1e-300).log()
    rest = torch.logsumexp(log_mass - path, 1, keepdim=True)
    on_right = torch.arange(path.shape[1], device=x.device)[None, :] > reference[:, None]
    favoured = log_mass + path
    peaks = [torch.where(side, favoured, -math.inf).amax(1, keepdim=True) for side in (~on_right, on_right)]
    peak = torch.where(on_right, peaks[1], peaks[0])  # of each side, lest the other's be too small to be a number
    mass = torch.exp(favoured - peak)
    on_left_of = mass[:, :-2].cumsum(1)
    on_right_of = mass[:, 2:].flip(1).cumsum(1).flip(1)
    outer = torch.where(on_right[:, 1:-1], on_right_of, on_left_of)
    return torch.sigmoid(peak[:, 1:-1] + outer.log() - rest)


def _split(
    score: ScoreFunction, rows: Tensor, x: Tensor, s: Tensor, ds: Tensor, indicator: Tensor, new: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Add nodes to each row; they stay sorted.

    The worst cells are split in two. Where a few cells outweigh all others, because the mass has hardly been found
    yet, those are split in four.
    """
    width = x.diff(dim=1)
    splittable = width > 64.0 * torch.finfo(x.dtype).eps * torch.maximum(x[:, :-1].abs(), x[:, 1:].abs())
    ranked, cells = torch.where(splittable, indicator, -1.0).sort(1, descending=True)
    start, wide = x.gather(1, cells), width.gather(1, cells)
    few = min(new // 3, cells.shape[1])
    new_x = torch.cat([start[:, :few] + part * wide[:, :few] for part in (0.25, 0.5, 0.75)], 1)  # (n, 3 * few)
    if 3 * few <= cells.shape[1]:
        outweighed = ranked[:, few, None] < _OUTWEIGHED * ranked[:, :1]
        new_x = torch.where(outweighed, new_x, start[:, : 3 * few] + 0.5 * wide[:, : 3 * few])
    new_s, new_ds = score(new_x, rows)
    x, order = torch.cat([x, new_x], 1).sort(1)
    s, ds = torch.cat([s, new_s], 1).gather(1, order), torch.cat([ds, new_ds], 1).gather(1, order)
    return x, s, ds


def _select(density: PiecewiseDensity, mask: Tensor) -> PiecewiseDensity:
    return PiecewiseDensity(**{name: value[mask] for name, value in vars(density).items()})


def _reassemble(parts: list[tuple[Tensor, PiecewiseDensity]]) -> PiecewiseDensity:
    """Put finished rows back in order; rows with fewer nodes repeat their last one (cells of no width)."""
    order = torch.cat([index for index, _ in parts]).argsort()
    most = max(part.x.shape[1] for _, part in parts)

    def gather(name: str) -> Tensor:
        pieces = []
        for _, part in parts:
            value = getattr(part, name)
            if value.ndim == 2 and name != "tails":
                missing = most - (name == "cells") - value.shape[1]
                filler = torch.zeros_like(value[:, -1:]) if name == "cells" else value[:, -1:]
                value = torch.cat([value, filler.expand(-1, missing)], 1)
            pieces.append(value)
        return torch.cat(pieces)[order]

    return PiecewiseDensity(**{name: gather(name) for name in PiecewiseDensity.__dataclass_fields__})
