"""Adaptive one-dimensional integration of densities from their scores.

A conditional gives :math:`s = E'` and :math:`s' = E''` at any point. :func:`integrate` places nodes until
:math:`\\log \\int e^E` is accurate; :mod:`arcsm.conditionals.piecewise` then has density, CDF, quantiles and moments.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from arcsm import _native
from arcsm._native import Indicators
from arcsm.conditionals.piecewise import (
    PiecewiseDensity,
    cell_masses,
    polynomial_of,
    rule,
    second_derivative,
    tail_mass,
)

#: ``score(x, rows)`` maps values ``(n, K)`` of the conditionals ``rows (n,)`` to score and derivative, ``(n, K)``.
ScoreFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
#: ``tail(x)`` maps values ``(*)`` far outside the data to score and derivative, ``(*)``, without a network.
TailFunction = Callable[[Tensor], tuple[Tensor, Tensor]]

_NEW_NODES = 12  # nodes added to a row at a time: twelve cells halved, or four cells quartered
_DOMINATED = 0.01  # of the worst cell's error; if all further cells are below it, the worst ones are quartered
_MAX_CELL_WIDTH = 0.8  # standard deviations; a wider cell with mass in it might hide a narrow mode
_MAX_CELL_NOISE = 2.5  # standard deviations of the noise, which no mode is narrower than; the same for both sides
_MAX_GRADING = 32.0  # a cell twice as wide as its neighbour may have an error 2^5 times as large
_SMALL_RISE = 1.0  # nats; a score that rises by less over a cell cannot hide a far mode
CALIBRATION = 0.1  #: ratio of actual errors to the raw estimates, for trained heads; seldom exceeded
_SNAP = 0.25  # cell widths; a node closer to the anchor moves to it


def integrate(
    score: ScoreFunction,
    nodes: Tensor,
    anchor: Tensor | None = None,
    tol: float = 1e-5,
    max_evaluations: int = 512,
    tail: TailFunction | None = None,
    noise: float = 0.0,
    at_anchor: tuple[Tensor, Tensor] | None = None,
    waits: bool = True,
) -> PiecewiseDensity:
    """Integrate ``N`` conditionals adaptively from their scores, in double precision and with error estimates.

    A coarse pass over ``nodes`` finds the mass. Until the estimated error of the log density is below ``tol``, the
    cells that contribute most to it are split. A cell contributes in two ways. The mass inside it may be wrong, and
    the step of the log density across it may be wrong, which shifts the weight of *everything* beyond the cell. The
    second term finds the sign change of the score between two far modes, although there is no mass near it.

    Arguments:
        score: The conditionals; see :data:`ScoreFunction`.
        nodes: Initial nodes, ``(N, K0)`` or ``(K0,)`` with ``K0 >= 2``, ascending, at most ``max_evaluations``. The
            outer two must bracket the modes. Beyond them the score is extrapolated linearly.
        anchor: Points ``(N,)`` whose log density must be accurate. They become nodes, unless they lie beyond outer
            nodes with a known tail. Default: the modes.
        tol: Target error of the log density in nats.
        max_evaluations: Largest number of score evaluations for one conditional.
        tail: Score and derivative at the outer two nodes, if known; see :data:`TailFunction`. These nodes are then not
            evaluated.
        noise: Standard deviation of noise in the values. No mode is narrower.
        at_anchor: Score and derivative at the anchors, ``(N,)`` each, if known.
        waits: Whether the host looks at the errors, to split cells where needed. Else the initial nodes must do, and
            are not checked.

    Example:
        >>> gaussian = lambda x, rows: (-(x - 3.0), torch.full_like(x, -1.0))
        >>> density = integrate(gaussian, torch.linspace(-50.0, 50.0, 9).expand(1, 9))
        >>> height = density.log_prob(torch.tensor([[3.0]], dtype=torch.float64)).exp().item()
        >>> round(height * math.sqrt(2.0 * math.pi), 6)
        1.0
    """
    nodes = torch.atleast_2d(nodes)
    if nodes.shape[1] < 2 or (waits and bool((nodes.diff(dim=1) <= 0).any())):
        raise ValueError("nodes: expected at least two ascending points per row")
    if anchor is not None:
        if tail is not None:  # beyond the outer nodes, the log density follows from theirs
            anchor = anchor.to(nodes.dtype).clamp(nodes[:, 0], nodes[:, -1])
        nodes = nodes.expand(len(anchor), -1)
        if at_anchor is None:
            nodes = _insert(nodes, anchor[:, None].to(nodes.dtype))
    free = 0 if tail is None else 2  # nodes that cost no evaluation
    needed = nodes.shape[1] - free
    if needed > max_evaluations:
        raise ValueError(f"max_evaluations: expected at least {needed} for the starting nodes, got {max_evaluations}")

    with torch.no_grad():
        x, rows = nodes, torch.arange(len(nodes), device=nodes.device)
        s, ds = evaluate_nodes(score, x, rows, tail)
        if anchor is not None and at_anchor is not None:
            free += 1
            x, s, ds = _include(x, s, ds, anchor.to(x.dtype), *at_anchor)
        finished: list[tuple[Tensor, PiecewiseDensity]] = []
        while True:
            density, cell_errors, errors = _assess(x, s, ds, None if anchor is None else anchor[rows], tol, free, noise)
            if not waits:
                return density
            budget = min(_NEW_NODES, max_evaluations + free - x.shape[1])
            done = torch.ones_like(density.converged) if budget < 3 else density.converged
            if not finished and bool(done.all()):
                return density
            finished.append((rows[done], density.select(done)))
            if bool(done.all()):
                return _reassemble(finished)
            keep = ~done
            rows, x, s, ds = rows[keep], x[keep], s[keep], ds[keep]
            remaining, row_anchor = density.select(keep), None if anchor is None else anchor[rows]
            likely = _errors(remaining, cell_errors[keep], row_anchor, CALIBRATION)
            worst = torch.where(likely.sum(1, keepdim=True) > tol, likely, errors[keep])  # likely errors first
            x, s, ds = _split(score, rows, x, s, ds, worst, budget)


def from_nodes(x: Tensor, s: Tensor, ds: Tensor) -> PiecewiseDensity:
    """Return the densities on nodes ``(N, K)`` with these scores and derivatives; differentiable by both.

    Their errors are not estimated; see :func:`interpolation_error`.
    """
    return _integrated(x, s, ds)[0]


def interpolation_error(density: PiecewiseDensity) -> Tensor:
    """Estimate the error of the log density from the mismatch of scores and slopes, in nats, ``(N,)``.

    Unlike the estimate of :func:`integrate`, it does not count a wide cell as an error in its own right.
    """
    return _errors(density, torch.zeros_like(density.cells), None, 1.0).sum(1)


def evaluate_nodes(score: ScoreFunction, x: Tensor, rows: Tensor, tail: TailFunction | None) -> tuple[Tensor, Tensor]:
    """Return scores and derivatives at nodes ``(N, K)``, the outer two from ``tail`` if it is given."""
    if tail is None:
        return score(x, rows)
    s, ds = score(x[:, 1:-1], rows)
    (first, dfirst), (last, dlast) = tail(x[:, :1]), tail(x[:, -1:])
    return torch.cat([first, s, last], 1), torch.cat([dfirst, ds, dlast], 1)


def _insert(nodes: Tensor, anchor: Tensor) -> Tensor:
    """Insert an anchor ``(N, 1)`` into nodes ``(N, K)``, which become ``(N, K + 1)``.

    A node close to the anchor moves to it, and the extra node halves the rest of the cell. In a narrow cell, the
    estimates would see only the rounding of the score. If the anchor is an outer node, the extra node halves its cell.
    """
    last = nodes.shape[1] - 1
    cell = (torch.searchsorted(nodes.contiguous(), anchor.contiguous(), right=True) - 1).clamp(0, last - 1)
    left, right = nodes.gather(1, cell), nodes.gather(1, cell + 1)
    close = _SNAP * (right - left)
    on_left, on_right = (anchor - left).abs() < close, (right - anchor).abs() < close
    nearest = torch.where(on_left, cell, cell + 1)
    moves = (on_left | on_right) & (nearest > 0) & (nearest < last)
    moved = torch.where(moves, nodes.scatter(1, nearest, anchor), nodes)
    halves = moves | (anchor == nodes[:, :1]) | (anchor == nodes[:, -1:])
    new = torch.where(halves, 0.5 * (anchor + torch.where(on_left, right, left)), anchor)
    return torch.cat([moved, new], 1).sort(1).values


def _include(
    x: Tensor, s: Tensor, ds: Tensor, anchor: Tensor, anchor_s: Tensor, anchor_ds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Add an anchor ``(N,)`` with its score and derivative to nodes ``(N, K)``, which become ``(N, K + 1)``.

    As in :func:`_insert`, an inner node close to the anchor gives way to it. The last node is then repeated, in a cell
    of no width, as it is for an anchor close to an outer node.
    """
    last = x.shape[1] - 1
    point = anchor[:, None]
    cell = (torch.searchsorted(x.contiguous(), point.contiguous(), right=True) - 1).clamp(0, last - 1)
    left, right = x.gather(1, cell), x.gather(1, cell + 1)
    nearest = torch.where(point - left < right - point, cell, cell + 1)
    close = (point - x.gather(1, nearest)).abs() < _SNAP * (right - left)
    outer = close & ((nearest == 0) | (nearest == last)) | (point <= x[:, :1]) | (point >= x[:, -1:])
    order = torch.cat([x, torch.where(close | outer, torch.inf, point)], 1).sort(1).indices

    def merged(nodes: Tensor, value: Tensor) -> Tensor:
        value = value[:, None].to(nodes)
        moved = torch.where(close & ~outer, nodes.scatter(1, nearest, value), nodes)
        return torch.cat([moved, torch.where(close | outer, nodes[:, -1:], value)], 1).gather(1, order)

    return merged(x, anchor), merged(s, anchor_s), merged(ds, anchor_ds)


def _integrated(x: Tensor, s: Tensor, ds: Tensor, free: int = 0) -> tuple[PiecewiseDensity, Tensor]:
    """Return the densities, without their errors, and the errors of the rule in each cell, ``(N, K - 1)``."""
    x, s, ds = x.double(), s.double(), ds.double()
    if _native.readable(x, s, ds) and _native.available():
        dds, energy, cells, rule_errors = _native.piecewise_integrate(rule(), x, s, ds)
    else:
        width = x.diff(dim=1)
        dds = second_derivative(width, s, ds)
        polynomial = polynomial_of(width, *((f[:, :-1], f[:, 1:]) for f in (s, ds, dds)))
        energy = torch.cat([torch.zeros_like(x[:, :1]), torch.as_tensor(sum(polynomial)).cumsum(1)], 1)
        energy = energy - energy.detach().amax(1, keepdim=True)
        cells, rule_errors = cell_masses(energy, width, polynomial)
    outer = slice(None, None, x.shape[1] - 1)  # the first node and the last
    tails = tail_mass(energy[:, outer], torch.stack([-s[:, 0], s[:, -1]], 1), ds[:, outer])
    log_mass = torch.log(cells.sum(1) + tails.sum(1))
    with torch.no_grad():
        error, converged = torch.zeros_like(log_mass), log_mass.isfinite()
        evaluations = torch.full_like(log_mass, x.shape[1] - free, dtype=torch.long)
    return PiecewiseDensity(x, s, ds, dds, energy, cells, tails, log_mass, error, converged, evaluations), rule_errors


def _assess(
    x: Tensor, s: Tensor, ds: Tensor, anchor: Tensor | None, tol: float, free: int = 0, noise: float = 0.0
) -> tuple[PiecewiseDensity, Tensor, Tensor]:
    """Return the densities, the error inside each cell and each cell's total contribution, ``(N, K - 1)`` each."""
    density, rule_errors = _integrated(x, s, ds, free)
    x, cells, log_mass = density.x, density.cells, density.log_mass
    with torch.no_grad():
        if _native.readable(x, cells, log_mass, rule_errors) and _native.available():
            widest = _MAX_CELL_WIDTH, _MAX_CELL_NOISE * noise
            cell_errors = _native.piecewise_cell_errors(widest, x, cells, log_mass, rule_errors)
        else:
            share = cells / torch.exp(log_mass)[:, None]
            cell_errors = rule_errors / torch.exp(log_mass)[:, None] + share * _is_too_wide(x, share, noise)
        errors = _errors(density, cell_errors, anchor, 1.0)
        density.error.add_(errors.sum(1))
        density.converged.logical_and_(density.error <= tol)
    return density, cell_errors, errors


def _errors(density: PiecewiseDensity, cell_errors: Tensor, anchor: Tensor | None, calibration: float) -> Tensor:
    """Return each cell's contribution to the error, ``(N, K - 1)``: the error inside, and the shift by its step."""
    at_nodes = [density.x, density.s, density.ds, density.dds, density.energy]
    if _native.readable(*at_nodes, cell_errors) and _native.available():
        return _native.piecewise_errors(
            Indicators(calibration, CALIBRATION, _MAX_GRADING, _SMALL_RISE, 1e-300), at_nodes, density.cells,
            density.tails, density.log_mass, cell_errors, None if anchor is None else anchor.to(density.x),
        )  # fmt: skip
    share = density.cells / torch.exp(density.log_mass)[:, None]
    steps = step_errors(density.x.diff(dim=1), density.s, density.ds, density.dds, calibration)
    outer = _outer_share(density.x, density.energy, density.cells, density.tails, steps, anchor)
    return cell_errors + share * steps.clamp(max=1.0) + steps * outer


def step_errors(width: Tensor, s: Tensor, ds: Tensor, dds: Tensor, calibration: float) -> Tensor:
    """Estimate the error of the log density's step over each cell, in nats, ``(N, K - 1)``.

    There are two indicators. The rise of the score over a cell should equal the mean of the slopes at its ends:

    .. math:: r = \\frac{|\\Delta s - \\frac{h}{2} (s'_i + s'_{i+1})|}{|\\Delta s| + \\frac{h}{2} (|s'_i| + |s'_{i+1}|)}

    And the rule should differ little from the rule without second derivatives. Either may vanish by chance, both seldom
    do. Where :math:`r` is small, the rule is better than the indicators by two orders of :math:`h`: their sum is scaled
    by :math:`r`, clamped to between :data:`CALIBRATION` and ``calibration``.

    A score that switches from one mode to the next within a cell may do so anywhere in it, so the step may be off by
    :math:`h \\Delta s / 2`. If a node happens to lie inside the switch, its steep slope hides part of the gap. The
    estimate is therefore at least about that bound, unless :math:`r` is small.
    """
    rise = s.diff(dim=1)
    slopes = width * 0.5 * (ds[:, :-1] + ds[:, 1:])
    gap = (rise - slopes).abs()
    size = rise.abs() + width * 0.5 * (ds[:, :-1].abs() + ds[:, 1:].abs())
    relative = (gap / size.clamp(min=1e-300)).clamp(max=1.0)
    by_curvature = width.square() * (0.5 * width * (dds[:, :-1] + dds[:, 1:]) - ds.diff(dim=1)) / 60.0
    errors = (0.3 * width * gap * relative + by_curvature.abs()) * relative.clamp(CALIBRATION, calibration)
    misplaced = 0.5 * (width * rise - _SMALL_RISE).clamp(min=0.0) * (2.0 * relative).clamp(max=1.0).square()
    errors = torch.maximum(errors, calibration * misplaced)
    # where the indicators change sign, a cell may look exact by chance: its neighbours bound its error from below
    ratio = (width[:, 1:] / width[:, :-1].clamp(min=1e-300)).pow(5)
    from_left = errors[:, :-1] * ratio.clamp(max=_MAX_GRADING)
    from_right = errors[:, 1:] / ratio.clamp(min=1.0 / _MAX_GRADING)
    errors[:, 1:] = torch.maximum(errors[:, 1:], from_left)
    errors[:, :-1] = torch.maximum(errors[:, :-1], from_right)
    return errors


def _is_too_wide(x: Tensor, share: Tensor, noise: float) -> Tensor:
    """Return 1 for each cell that is wide enough to hide a narrow mode, else 0, ``(N, K - 1)``."""
    middle = 0.5 * (x[:, :-1] + x[:, 1:])
    mean = (share * middle).sum(1, keepdim=True)
    std = (share * (middle - mean).square()).sum(1, keepdim=True).sqrt()
    return (x.diff(dim=1) > (_MAX_CELL_WIDTH * std).clamp(min=_MAX_CELL_NOISE * noise)).to(x.dtype)


def _outer_share(
    x: Tensor, energy: Tensor, cells: Tensor, tails: Tensor, errors: Tensor, anchor: Tensor | None
) -> Tensor:
    """Bound the share of the mass beyond each cell, seen from the anchor (or the mode), ``(N, K - 1)``.

    The bound assumes that all ``errors (N, K - 1)`` of steps between a cell and the anchor favour the mass beyond it,
    and disfavour the rest.
    """
    reference = energy.argmax(1) if anchor is None else (x - anchor[:, None]).abs().argmin(1)
    total = torch.cat([torch.zeros_like(x[:, :1]), errors.cumsum(1)], 1)
    total = (total - total.gather(1, reference[:, None])).abs()  # (N, K) from the reference to each node
    total = torch.cat([total[:, :1], torch.maximum(total[:, :-1], total[:, 1:]), total[:, -1:]], 1)  # (N, K + 1)
    log_mass = torch.cat([tails[:, :1], cells, tails[:, 1:]], 1).clamp(min=1e-300).log()
    rest = torch.logsumexp(log_mass - total, 1, keepdim=True)
    on_right = torch.arange(total.shape[1], device=x.device)[None, :] > reference[:, None]
    favoured = log_mass + total
    peaks = [torch.where(side, favoured, -math.inf).amax(1, keepdim=True) for side in (~on_right, on_right)]
    peak = torch.where(on_right, peaks[1], peaks[0])  # one for each side, so that the smaller side does not underflow
    mass = torch.exp(favoured - peak)
    outer = torch.where(on_right[:, 1:-1], mass[:, 2:].flip(1).cumsum(1).flip(1), mass[:, :-2].cumsum(1))
    return torch.sigmoid(peak[:, 1:-1] + outer.log() - rest)


def _split(
    score: ScoreFunction, rows: Tensor, x: Tensor, s: Tensor, ds: Tensor, indicator: Tensor, new: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Halve the ``new`` worst cells of each row; where a few cells dominate, quarter those instead."""
    width = x.diff(dim=1)
    splittable = width > 64.0 * torch.finfo(x.dtype).eps * torch.maximum(x[:, :-1].abs(), x[:, 1:].abs())
    ranked, cells = torch.where(splittable, indicator, -1.0).sort(1, descending=True)
    start, wide = x.gather(1, cells), width.gather(1, cells)
    few = min(new // 3, cells.shape[1])
    new_x = torch.cat([start[:, :few] + part * wide[:, :few] for part in (0.25, 0.5, 0.75)], 1)  # (n, 3 * few)
    if 3 * few <= cells.shape[1]:
        dominated = ranked[:, few, None] < _DOMINATED * ranked[:, :1]
        new_x = torch.where(dominated, new_x, start[:, : 3 * few] + 0.5 * wide[:, : 3 * few])
    new_s, new_ds = score(new_x, rows)
    x, order = torch.cat([x, new_x], 1).sort(1)
    s, ds = torch.cat([s, new_s], 1).gather(1, order), torch.cat([ds, new_ds], 1).gather(1, order)
    return x, s, ds


def _reassemble(parts: list[tuple[Tensor, PiecewiseDensity]]) -> PiecewiseDensity:
    """Restore the order of finished rows; rows with fewer nodes repeat their last one, in cells of no width."""
    order = torch.cat([rows for rows, _ in parts]).argsort()
    nodes = max(density.x.shape[1] for _, density in parts)

    def gather(name: str) -> Tensor:
        values = []
        for _, density in parts:
            value = getattr(density, name)
            if value.ndim == 2 and name != "tails":
                missing = nodes - (name == "cells") - value.shape[1]
                filler = torch.zeros_like(value[:, -1:]) if name == "cells" else value[:, -1:]
                value = torch.cat([value, filler.expand(-1, missing)], 1)
            values.append(value)
        return torch.cat(values)[order]

    return PiecewiseDensity(**{name: gather(name) for name in PiecewiseDensity.__dataclass_fields__})
