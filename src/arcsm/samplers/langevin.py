"""Annealed Langevin dynamics (paper, Appendix C.3, Eq. 22)."""

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from arcsm._runtime.random import normal_like
from arcsm.conditionals.conditionals import Conditionals
from arcsm.samplers.base import normals


def langevin(
    conditionals: Conditionals,
    generator: torch.Generator | None = None,
    steps: int = 20,
    step_size: float | None = None,
) -> Tensor:
    """Sample by annealed one-dimensional Langevin dynamics from normal noise (paper, Appendix C.3, Eq. 22).

    .. math:: x \\leftarrow x + \\tfrac{\\epsilon}{2} s_{\\sigma_i}(x) + \\sqrt{\\epsilon}\\, z, \\qquad
        \\epsilon = \\epsilon_0\\, \\sigma_i^2 / \\sigma_L^2

    Without a ladder, the dynamics are not annealed.

    Arguments:
        steps: Steps :math:`T` at each level, at least one (paper: 20 for MNIST, 10 for colour images).
        step_size: :math:`\\epsilon_0`, positive, in squared standardised units. Default: :math:`0.4\\,\\sigma_L^2`, or
            0.01 without a ladder.
    """
    check_langevin(steps, step_size)
    x = normals(conditionals, generator)
    return annealed_langevin(conditionals, x, conditionals.path, generator, steps, step_size)


def check_langevin(steps: int, step_size: float | None) -> None:
    """Check the options of :func:`langevin`."""
    if not isinstance(steps, Integral):
        raise ValueError(f"steps: expected a whole number, got {steps!r:.60}")
    if steps < 1 or not (step_size is None or 0.0 < step_size < math.inf):
        raise ValueError(f"steps, step_size: expected at least 1 and a positive number, got {steps} and {step_size}")


def annealed_langevin(
    conditionals: Conditionals,
    x: Tensor,
    levels: Sequence[float],
    generator: torch.Generator | None,
    steps: int,
    step_size: float | None,
) -> Tensor:
    """Run the dynamics of :func:`langevin` from ``x (N,)`` down these noise levels; without levels, not annealed."""
    ladder: Sequence[float | None] = levels or (None,)
    smallest = ladder[-1]
    if step_size is None:
        step_size = 0.01 if smallest is None else 0.4 * smallest**2
    for sigma in ladder:
        epsilon = step_size if sigma is None or smallest is None else step_size * (sigma / smallest) ** 2
        for _ in range(steps):
            x = x + 0.5 * epsilon * conditionals.score(x, sigma) + epsilon**0.5 * normal_like(x, generator)
    return x
