"""The contract of a sampler, and the draws that several share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from arcsm._runtime.random import open_uniform_like
from arcsm.conditionals.conditionals import Accuracy, Conditionals, starting_nodes
from arcsm.heads import Head
from arcsm.heads.score import WINDOW_END_WIDTHS, ScoreHead

_LEAST_PRECISION = 0.05  # of a conditional at the largest noise, in those of the noise alone, which is the most


_FARTHEST = 10.0  # of its mean, in sigmas


#: Nodes around a nearly normal conditional, in its deviations: no cell with mass in it is wider than may be.
_STEPS_AROUND = (-6.0, -3.75, -3.0, -2.25, -1.5, -0.75, 0.0, 0.75, 1.5, 2.25, 3.0, 3.75, 6.0)


#: A sampler takes ``N`` conditionals, a generator and its own options, and returns ``(N,)`` values.
Sampler = Callable[..., Tensor]


def uniform_draws(conditionals: Conditionals, generator: torch.Generator | None) -> Tensor:
    """Numbers in (0, 1) of the precision that densities have: half precision knows but a few hundred."""
    return open_uniform_like(conditionals.projection[:, 0].to(conditionals.dtype), generator)


def largest_noise(conditionals: Conditionals, sampler: str) -> float:
    if not conditionals.path:
        raise ValueError(f'sampler: "{sampler}" needs a noise ladder; use "inverse_cdf" or "langevin"')
    return conditionals.path[0]


def draw_by_quadrature(conditionals: Conditionals, sigma: float, u: Tensor, tol: float) -> Tensor:
    """The quantiles ``u (N,)`` at a noise level, by quadrature that begins where the mass is."""
    exact = replace(conditionals, path=(sigma,), method="quadrature", accuracy=Accuracy(tol), unconverged=0)
    x = exact.icdf(u, nodes_around(exact, *normal_approximation(conditionals, sigma)))
    conditionals.unconverged += exact.unconverged
    return x


def data_std_of(head: Head) -> float:
    return head.data_std if isinstance(head, ScoreHead) else 1.0


def normal_approximation(conditionals: Conditionals, sigma: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the normal distribution whose score is the conditional's at two points.

    First at one sigma to either side of zero, then at one deviation to either side of the mean found, ``(N,)`` each. A
    secant sees the width of the whole; the slope at one point would see the ripples of a learned score.
    """
    mean = conditionals.projection.new_zeros(len(conditionals))
    deviation = torch.full_like(mean, sigma)
    for _ in range(2):
        low, high = conditionals.score(torch.stack([mean - deviation, mean + deviation]), sigma)
        precision = ((low - high) / (2.0 * deviation)).clamp(_LEAST_PRECISION / sigma**2, 1.0 / sigma**2)
        mean = (mean + 0.5 * (low + high) / precision).clamp(-_FARTHEST * sigma, _FARTHEST * sigma)
        deviation = precision.rsqrt()
    return mean, deviation


def nodes_around(conditionals: Conditionals, mean: Tensor, deviation: Tensor) -> Tensor:
    """Where to begin to integrate conditionals that are nearly normal, ``(N, K)`` in double precision.

    Close together where the mass seems to be, so that mostly one pass will do, and the outermost nodes of the head.
    """
    ends = starting_nodes(conditionals.head, conditionals.projection, conditionals.sigma, (WINDOW_END_WIDTHS,))
    low, middle, high = ends.split(1, 1)
    half = high - middle
    centre = mean[:, None].clamp(middle - 0.8 * half, middle + 0.8 * half)
    room = (half - (centre - middle).abs()) / (1.1 * _STEPS_AROUND[-1])
    steps = _steps_around(low.dtype, low.device)
    return torch.cat([low, torch.addcmul(centre, torch.minimum(deviation[:, None], room), steps), high], 1)


@functools.cache
def _steps_around(dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is kept may later be differentiated through
        return torch.tensor(_STEPS_AROUND, dtype=dtype, device=device)


def normal_draws(conditionals: Conditionals, generator: torch.Generator | None) -> Tensor:
    like = conditionals.projection
    return torch.randn(len(conditionals), generator=generator, device=like.device, dtype=like.dtype)
