"""Exact sampling by the inverse distribution function."""

import torch
from torch import Tensor

from arcsm.conditionals.conditionals import Accuracy, Conditionals, Method
from arcsm.samplers.base import uniforms


def inverse_cdf(conditionals: Conditionals, generator: torch.Generator | None = None, tol: float = 1e-4) -> Tensor:
    """Sample exactly at the smallest noise: the quantile of a uniform, in closed form or by quadrature.

    An integrated log density has the target error ``tol``, in nats.
    """
    method: Method = "closed_form" if conditionals.head.normalised else "quadrature"
    u = uniforms(conditionals, generator)
    return conditionals.apply(lambda exact: exact.icdf(u), method=method, accuracy=Accuracy(tol), looks=None)
