"""Exact draws by the inverse distribution function."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from arcsm.conditionals.conditionals import Accuracy, Conditionals, Method
from arcsm.samplers.base import uniform_draws


def inverse_cdf(conditionals: Conditionals, generator: torch.Generator | None = None, tol: float = 1e-4) -> Tensor:
    """An exact draw at the smallest noise: the quantile of a uniform, in closed form or by quadrature.

    Arguments:
        conditionals: The conditionals.
        generator: Source of randomness.
        tol: Accuracy of the density in nats, where it is integrated.
    """
    method: Method = "closed_form" if conditionals.head.normalised else "quadrature"
    exact = replace(conditionals, method=method, accuracy=Accuracy(tol), unconverged=0)
    x = exact.icdf(uniform_draws(conditionals, generator))
    conditionals.unconverged += exact.unconverged
    return x
