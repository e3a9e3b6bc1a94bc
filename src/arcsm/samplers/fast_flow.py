"""The probability-flow ODE from few evaluations."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch
from torch import Tensor

from arcsm.conditionals.conditionals import Conditionals
from arcsm.conditionals.piecewise import PiecewiseDensity
from arcsm.conditionals.quadrature import doubt, from_nodes
from arcsm.samplers.base import data_std_of, draw_by_quadrature, largest_noise, uniform_draws

_REACH = 2.4  # of a coarse density, in deviations of the data with the noise: images end at two of them


_BLURRED = 2.8  # sigmas between neighbouring nodes of it, at most


_FEWEST_NODES, _MOST_NODES = 5, 32


_LARGEST_TAILS = 0.1  # mass beyond its outer nodes


def fast_flow(conditionals: Conditionals, generator: torch.Generator | None = None, tol: float = 0.1) -> Tensor:
    """Nearly the same flow for a handful of evaluations: few nodes at the largest noise, then one score a step.

    At the largest noise most conditionals are smooth, so a few scores with their slopes give the whole distribution
    function; where these leave a doubt, the conditional is integrated. Down from there goes a multistep method of
    second order in :math:`\\log \\sigma`: with Tweedie's :math:`m = x + \\sigma^2 s_\\sigma(x)`, that of the step
    before :math:`m'`, and :math:`\\lambda` the logarithm of :math:`\\sigma / \\sigma_{next}`,

    .. math:: x \\leftarrow \\tfrac{\\sigma_{next}}{\\sigma} x + \\big(1 - \\tfrac{\\sigma_{next}}{\\sigma}\\big)
        \\big(m + \\tfrac{\\lambda}{2 \\lambda'} (m - m')\\big)

    What a few steps, ``model.sample(n, "fast_flow", steps=10)``, cost and give is measured by the experiment
    ``sampling-cost``.

    References:
        DPM-Solver++ (Lu et al., 2022), for the multistep method, https://arxiv.org/abs/2211.01095

    Arguments:
        conditionals: The conditionals, with their ladder.
        generator: Source of randomness.
        tol: Doubt about the density at the largest noise, in nats, beyond which a conditional is integrated to it.

    Raises:
        ValueError: for a model without a noise ladder.
    """
    top = largest_noise(conditionals, "fast_flow")
    u = uniform_draws(conditionals, generator)
    if conditionals.head.normalised:
        x = replace(conditionals, path=(top,), method="closed_form").icdf(u)
    else:
        x = _coarse_draw(conditionals, top, u, tol)
    x = x.to(conditionals.dtype)
    mean_before, step_before = x, math.inf
    for high, low in itertools.pairwise(conditionals.path):
        mean, step = torch.add(x, conditionals.score(x, high), alpha=high**2), math.log(high / low)
        foretold = torch.lerp(mean_before, mean, 1.0 + 0.5 * step / step_before)
        x = torch.lerp(foretold, x, low / high)
        mean_before, step_before = mean, step
    return x


def _coarse_draw(conditionals: Conditionals, sigma: float, u: Tensor, tol: float) -> Tensor:
    """The quantiles ``u (N,)`` at a noise level from few nodes, and exactly of those conditionals that need more."""
    width = math.hypot(sigma, data_std_of(conditionals.head))
    count = max(_FEWEST_NODES, 1 + math.ceil(2.0 * _REACH * width / (_BLURRED * sigma)))
    if count > _MOST_NODES:
        return draw_by_quadrature(conditionals, sigma, u, tol)
    density = _coarse_density(conditionals, sigma, width, count)
    x = density.quantile(u[:, None].double(), tolerance=1e-3)[:, 0].to(u.dtype)
    beyond = density.tails.sum(1) / torch.exp(density.log_mass)
    rows = (~((doubt(density) <= tol) & (beyond <= _LARGEST_TAILS))).nonzero()[:, 0]
    if len(rows):
        part = replace(conditionals, projection=conditionals.projection[rows], unconverged=0)
        x[rows] = draw_by_quadrature(part, sigma, u[rows], tol)
        conditionals.unconverged += part.unconverged
    return x


def _coarse_density(conditionals: Conditionals, sigma: float, width: float, count: int) -> PiecewiseDensity:
    """The conditionals as scores and slopes at evenly spaced points describe them.

    Beyond the outer points the tails are normal, and no wider than those of the data with the noise, ``width``.
    """
    like = conditionals.projection
    grid = torch.linspace(-_REACH, _REACH, count, dtype=torch.float64, device=like.device) * width
    x = grid.expand(len(like), -1)
    s, ds = conditionals.score_and_derivative(x, slice(0, len(x)), sigma)
    outer = ds[:, :: count - 1].clamp(max=-(width**-2))
    return from_nodes(x, s, torch.cat([outer[:, :1], ds[:, 1:-1], outer[:, 1:]], 1))
