"""The probability-flow ODE with few score evaluations."""

import itertools
import math

import torch
from torch import Tensor

from arcsm.conditionals.conditionals import NEWTON_STEPS, Conditionals
from arcsm.conditionals.quadrature import from_nodes, interpolation_error
from arcsm.samplers.base import largest_noise, looks_at, quadrature_icdf, uniforms

_HALF_WIDTH = 2.4  # of the coarse grid, in standard deviations of noisy data; images end at two
_MAX_SPACING = 2.8  # sigmas
_MIN_NODES, _MAX_NODES = 5, 32
_MAX_TAILS = 0.1  # mass outside the grid


def fast_flow(conditionals: Conditionals, generator: torch.Generator | None = None, tol: float = 0.1) -> Tensor:
    """Sample nearly the same flow as ``probability_flow`` with one score evaluation a step.

    At the largest noise most conditionals are smooth, so a few scores with their slopes determine the distribution
    function. Conditionals whose log density has an estimated error above ``tol`` nats are integrated. A second-order
    multistep method in :math:`\\log \\sigma` follows. With Tweedie's :math:`m = x + \\sigma^2 s_\\sigma(x)`,
    :math:`\\lambda = \\log(\\sigma / \\sigma_{next})`, and :math:`m', \\lambda'` from the step before,

    .. math:: x \\leftarrow \\tfrac{\\sigma_{next}}{\\sigma} x + \\big(1 - \\tfrac{\\sigma_{next}}{\\sigma}\\big)
        \\big(m + \\tfrac{\\lambda}{2 \\lambda'} (m - m')\\big)

    The experiment ``sampling-cost`` measures cost and quality of few steps, as in
    ``model.sample(n, "fast_flow", steps=10)``. A model without a noise ladder is rejected with a ``ValueError``.

    References:
        DPM-Solver++ (Lu et al., 2022), for the multistep method, https://arxiv.org/abs/2211.01095
    """
    top = largest_noise(conditionals, "fast_flow")
    u = uniforms(conditionals, generator)
    if conditionals.head.normalised:
        x = conditionals.apply(lambda part: part.icdf(u), path=(top,), method="closed_form")
    else:
        x = _coarse_icdf(conditionals, top, u, tol)
    x = x.to(conditionals.dtype)
    previous_mean, previous_step = x, math.inf
    for high, low in itertools.pairwise(conditionals.path):
        mean, step = torch.add(x, conditionals.score(x, high), alpha=high**2), math.log(high / low)
        extrapolated = torch.lerp(previous_mean, mean, 1.0 + 0.5 * step / previous_step)
        x = torch.lerp(extrapolated, x, low / high)
        previous_mean, previous_step = mean, step
    return x


def _coarse_icdf(conditionals: Conditionals, sigma: float, u: Tensor, tol: float) -> Tensor:
    """Return the quantiles ``u (N,)`` at a noise level from a coarse grid, by quadrature where needed."""
    width = math.hypot(sigma, conditionals.data_std)
    looks = looks_at(conditionals, sigma)
    least = _MIN_NODES if looks is None else 2 * _MIN_NODES
    count = max(least, 1 + math.ceil(2.0 * _HALF_WIDTH * width / (_MAX_SPACING * sigma)))
    if count > _MAX_NODES:
        return quadrature_icdf(conditionals, sigma, u, tol)
    grid = torch.linspace(-_HALF_WIDTH, _HALF_WIDTH, count, dtype=torch.float64, device=u.device) * width
    nodes = grid.expand(len(u), -1)
    s, ds = conditionals.score_and_derivative(nodes, slice(0, len(u)), sigma)
    outer = ds[:, :: count - 1].clamp(max=-(width**-2))  # tails no wider than `width`
    density = from_nodes(nodes, s, torch.cat([outer[:, :1], ds[:, 1:-1], outer[:, 1:]], 1))
    if looks is None:
        x = density.icdf(u[:, None].double(), tolerance=1e-3)[:, 0].to(u.dtype)
    else:
        x = density.icdf(u[:, None].double(), NEWTON_STEPS, waits=False)[:, 0].to(u.dtype)
    tails = density.tails.sum(1) / torch.exp(density.log_mass)
    is_accurate = (interpolation_error(density) <= tol) & (tails <= _MAX_TAILS)
    if looks is not None:
        conditionals.unconverged += (~is_accurate).sum()
        return x
    rows = (~is_accurate).nonzero()[:, 0]
    if len(rows):
        x[rows] = quadrature_icdf(conditionals, sigma, u[rows], tol, rows)
    return x
