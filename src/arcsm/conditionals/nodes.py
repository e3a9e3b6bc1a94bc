"""Where the integration of conditionals starts: initial nodes, and tails that need no network."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from arcsm._runtime.devices import constant
from arcsm.conditionals.piecewise import PiecewiseDensity
from arcsm.conditionals.quadrature import TailFunction
from arcsm.errors import AccuracyWarning, NoDensityError, warn
from arcsm.heads import Head, NormalisedHead, ScoreHead
from arcsm.heads.score import WINDOW_END_WIDTHS

#: Initial nodes on the right of zero, in widths of the base Gaussian: dense where most of the mass is, and extending
#: to where the score is exactly linear.
HALF_GRID = (0.4, 0.8, 1.2, 1.6, 2.0, 2.5, 3.0, 3.75, 5.0, 7.5, 12.0, WINDOW_END_WIDTHS)
#: The same at the largest noise of a ladder, where no mode is narrow.
HALF_GRID_OF_NOISE = (0.9, 1.8, 2.8, 4.2, 7.5, WINDOW_END_WIDTHS)
_MAX_TAIL_SHARE = 1e-3  # of the mass outside the range of a head that may have any tails


def starting_nodes(
    head: Head, projection: Tensor, sigma: float | None, half_grid: Sequence[float] = HALF_GRID
) -> Tensor:
    """Return the nodes at which the integration of a head's conditionals starts, ``(N, K)`` in double precision."""
    symmetric = (*(-t for t in reversed(half_grid)), 0.0, *half_grid)
    grid = constant(symmetric, torch.float64, projection.device)
    if isinstance(head, ScoreHead):
        return (grid * head.base_width(sigma)).expand(len(projection), -1)
    if isinstance(head, NormalisedHead):
        low, high = (edge.double() for edge in head.bracket(projection, sigma))
        return 0.5 * (low + high)[:, None] + 0.5 * (high - low)[:, None] * grid / half_grid[-1]
    raise NoDensityError(
        f"{type(head).__name__}: has scores and no density; use a ScoreHead or a NormalisedHead, or draw samples with "
        'sampler="langevin"'
    )


def known_tail(head: Head, sigma: float | None, nodes: Tensor) -> TailFunction | None:
    """Return the score and derivative at the outer nodes of ``(N, K)`` as a function, if they need no network.

    The outer nodes on an accelerator, which would have to be waited for, are taken to be those of
    :func:`starting_nodes`.
    """
    if not isinstance(head, ScoreHead) or not head.has_original_score:
        return None
    start = head.tail_start(sigma) * (1.0 - 1e-12)
    in_tails = nodes.device.type != "cpu" or bool((torch.minimum(-nodes[:, 0], nodes[:, -1]) >= start).all())
    return partial(head.tail_score_and_derivative, sigma) if in_tails else None


def check_range(head: ScoreHead, density: PiecewiseDensity) -> None:
    """Warn if a score of a subclass puts mass outside of its range, where it is only extrapolated."""
    share = density.tails.detach().sum(1) / torch.exp(density.log_mass)
    if not bool((share <= _MAX_TAIL_SHARE).all()):
        widths = f"{WINDOW_END_WIDTHS:g} sqrt(sigma^2 + data_std^2) from zero, in standardised units"
        message = f"{type(head).__name__}: some mass lies beyond {widths}, where the score is only extrapolated"
        warn(f"{message}; standardise the data or raise data_std", AccuracyWarning)
