"""The contract of a sampler, and exact samples at the largest noise, from which the flow samplers start."""

from collections.abc import Callable

import torch
from torch import Tensor

from arcsm._runtime.devices import constant
from arcsm._runtime.random import normal_like, open_uniform_like
from arcsm.conditionals.conditionals import Accuracy, Conditionals
from arcsm.conditionals.nodes import starting_nodes
from arcsm.heads.score import WINDOW_END_WIDTHS

#: A sampler takes ``N`` conditionals, a generator and its own options, and returns ``(N,)`` values. It draws with
#: :func:`uniforms` and :func:`normals`, so that a sample does not depend on how its rows are divided into batches.
Sampler = Callable[..., Tensor]

_MIN_PRECISION = 0.05  # of a conditional, relative to the precision of the noise alone, which is the largest possible
_MAX_MEAN = 10.0  # sigmas
#: Nodes around a nearly normal conditional, in its standard deviations. No cell with mass is wider than integration
#: accepts.
_GRID = (-6.0, -3.75, -3.0, -2.25, -1.5, -0.75, 0.0, 0.75, 1.5, 2.25, 3.0, 3.75, 6.0)


def uniforms(conditionals: Conditionals, generator: torch.Generator | None) -> Tensor:
    """Return ``(N,)`` random numbers in (0, 1), in the precision of the densities."""
    return open_uniform_like(conditionals.projection[:, 0].to(conditionals.dtype), generator)


def normals(conditionals: Conditionals, generator: torch.Generator | None) -> Tensor:
    """Return ``(N,)`` standard normal numbers, in the precision of the densities."""
    return normal_like(conditionals.projection[:, 0].to(conditionals.dtype), generator)


def largest_noise(conditionals: Conditionals, sampler: str) -> float:
    """Return the largest noise level, after checking that there is a ladder."""
    if not conditionals.path:
        raise ValueError(f'sampler: "{sampler}" needs a noise ladder; use "inverse_cdf" or "langevin"')
    return conditionals.path[0]


def looks_at(conditionals: Conditionals, sigma: float) -> int | None:
    """Return how often the host looks at the errors of densities at a noise level.

    Never on an accelerator if noise hides all modes, else whenever useful.
    """
    return 0 if conditionals.is_remote and conditionals.is_noise(sigma) else None


def quadrature_icdf(
    conditionals: Conditionals, sigma: float, u: Tensor, tol: float, rows: Tensor | None = None
) -> Tensor:
    """Return the quantiles ``u (n,)`` of the conditionals ``rows`` at a noise level, by quadrature.

    Nodes are placed by the width of each conditional, unless noise makes them all alike.
    """
    looks = looks_at(conditionals, sigma)

    def icdf(part: Conditionals) -> Tensor:
        if part.is_noise(sigma):
            return part.icdf(u)
        return part.icdf(u, nodes_around(part, *normal_approximation(part, sigma)))

    return conditionals.apply(icdf, rows, path=(sigma,), method="quadrature", accuracy=Accuracy(tol), looks=looks)


def normal_approximation(conditionals: Conditionals, sigma: float) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the normal distribution with the same score at two points, ``(N,)`` each.

    The first two points are one sigma to either side of zero. The second two are one standard deviation to either
    side of the first mean. A secant sees the width of the whole density, where a slope would see the ripples of a
    learned score.
    """
    mean = conditionals.projection.new_zeros(len(conditionals))
    std = torch.full_like(mean, sigma)
    for _ in range(2):
        low, high = conditionals.score(torch.stack([mean - std, mean + std]), sigma)
        precision = ((low - high) / (2.0 * std)).clamp(_MIN_PRECISION / sigma**2, 1.0 / sigma**2)
        mean = (mean + 0.5 * (low + high) / precision).clamp(-_MAX_MEAN * sigma, _MAX_MEAN * sigma)
        std = precision.rsqrt()
    return mean, std


def nodes_around(conditionals: Conditionals, mean: Tensor, std: Tensor) -> Tensor:
    """Return initial nodes for nearly normal conditionals, ``(N, K)`` in double precision.

    They are dense where the mass should be, so that one pass of the integration usually suffices. The outer nodes are
    the head's own.
    """
    ends = starting_nodes(conditionals.head, conditionals.projection, conditionals.sigma, (WINDOW_END_WIDTHS,))
    low, middle, high = ends.split(1, 1)
    half = high - middle
    centre = mean[:, None].clamp(middle - 0.8 * half, middle + 0.8 * half)
    room = (half - (centre - middle).abs()) / (1.1 * _GRID[-1])
    grid = constant(_GRID, low.dtype, low.device)
    return torch.cat([low, torch.addcmul(centre, torch.minimum(std[:, None], room), grid), high], 1)
