"""The probability-flow ODE."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from arcsm.conditionals.conditionals import Conditionals
from arcsm.samplers.base import draw_by_quadrature, largest_noise, uniform_draws


def probability_flow(conditionals: Conditionals, generator: torch.Generator | None = None, tol: float = 1e-3) -> Tensor:
    """An exact draw at the largest noise, then the probability-flow ODE down the ladder by Heun steps.

    .. math:: x_{\\sigma_1} = F_{\\sigma_1}^{-1}(u), \\qquad dx / d\\sigma = -\\sigma\\, s_\\sigma(x)

    What it draws from is the model's density by ``method="flow"``, up to ``tol`` (and up to steps that would fold,
    which :func:`arcsm.conditionals.flow.flow_down` looks for and this does not).

    Arguments:
        conditionals: The conditionals, with their ladder.
        generator: Source of randomness.
        tol: Accuracy of the density at the largest noise, in nats.

    Raises:
        ValueError: for a model without a noise ladder.
    """
    top = largest_noise(conditionals, "probability_flow")
    x = draw_by_quadrature(conditionals, top, uniform_draws(conditionals, generator), tol)
    for high, low in itertools.pairwise(conditionals.path):
        first = conditionals.score(x, high)
        second = conditionals.score(torch.add(x, first, alpha=(high - low) * high), low)
        x = torch.add(x, first, alpha=0.5 * (high - low) * high).add_(second, alpha=0.5 * (high - low) * low)
    return x
