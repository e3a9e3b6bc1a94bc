"""The probability-flow ODE, followed by a multistep method."""

import torch
from torch import Tensor

from arcsm.conditionals.conditionals import Conditionals
from arcsm.samplers.base import largest_noise, quadrature_icdf, uniforms


def probability_flow(conditionals: Conditionals, generator: torch.Generator | None = None, tol: float = 1e-2) -> Tensor:
    """Sample exactly at the largest noise, then follow the probability-flow ODE down the ladder.

    .. math:: x_{\\sigma_1} = F_{\\sigma_1}^{-1}(u), \\qquad dx / d\\sigma = -\\sigma\\, s_\\sigma(x)

    The samples follow the model's density by ``method="flow"``, up to an error of ``tol`` nats of the log density. A
    model without a noise ladder is rejected with a ``ValueError``.
    """
    top = largest_noise(conditionals, "probability_flow")
    x = quadrature_icdf(conditionals, top, uniforms(conditionals, generator), tol)
    looks = 0 if conditionals.is_remote else None
    return conditionals.apply(lambda part: part.carry(x, tol, with_slopes=False).x, looks=looks)
