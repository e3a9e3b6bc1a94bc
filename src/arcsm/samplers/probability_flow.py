"""The probability-flow ODE by Heun steps."""

import itertools

import torch
from torch import Tensor

from arcsm.conditionals.conditionals import Conditionals
from arcsm.samplers.base import largest_noise, quadrature_icdf, uniforms


def probability_flow(conditionals: Conditionals, generator: torch.Generator | None = None, tol: float = 1e-3) -> Tensor:
    """Sample exactly at the largest noise, then follow the probability-flow ODE down the ladder by Heun steps.

    .. math:: x_{\\sigma_1} = F_{\\sigma_1}^{-1}(u), \\qquad dx / d\\sigma = -\\sigma\\, s_\\sigma(x)

    The samples follow the model's density by ``method="flow"``, up to an error of ``tol`` nats of the log density at
    the largest noise and up to steps that fold, which only :func:`arcsm.conditionals.flow.flow_down` refines. A model
    without a noise ladder is rejected with a ``ValueError``.
    """
    top = largest_noise(conditionals, "probability_flow")
    x = quadrature_icdf(conditionals, top, uniforms(conditionals, generator), tol)
    for high, low in itertools.pairwise(conditionals.path):
        first = conditionals.score(x, high)
        second = conditionals.score(torch.add(x, first, alpha=(high - low) * high), low)
        x = torch.add(x, first, alpha=0.5 * (high - low) * high).add_(second, alpha=0.5 * (high - low) * low)
    return x
