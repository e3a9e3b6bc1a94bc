"""The maps that make skewed numbers more nearly normal, on tensors."""

import torch
from torch import Tensor

_LEAST_EXPONENT = 1e-9  # in place of 0, whose power is a logarithm
_MAX_LOGARITHM = 500.0  # of an inverse, which must not overflow


def map_values(v: Tensor, exponent: Tensor) -> Tensor:
    """Return :math:`T(v)`, the Yeo-Johnson transform with an exponent from 0 to 2, or asinh where that is NaN.

    References:
        A new family of power transformations to improve normality or symmetry (Yeo and Johnson, 2000)
    """
    p, sign = _one_sided(v, exponent)
    power = sign * torch.expm1(p * torch.log1p(sign * v)) / p
    return torch.where(exponent.isnan(), torch.asinh(v), power)


def log_slope(v: Tensor, exponent: Tensor) -> Tensor:
    """Return :math:`\\log T'(v)`."""
    p, sign = _one_sided(v, exponent)
    power = (p - 1.0) * torch.log1p(sign * v)
    return torch.where(exponent.isnan(), -0.5 * torch.log1p(v.square()), power)


def unmap_numbers(t: Tensor, exponent: Tensor) -> Tensor:
    """Return :math:`T^{-1}(t)`."""
    p, sign = _one_sided(t, exponent)
    power = sign * torch.expm1((torch.log1p(p * sign * t) / p).clamp(max=_MAX_LOGARITHM))
    return torch.where(exponent.isnan(), torch.sinh(t.clamp(-_MAX_LOGARITHM, _MAX_LOGARITHM)), power)


def _one_sided(v: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Return the exponent of each value's side, :math:`p` or :math:`2 - p`, and its sign, 1 for 0."""
    p = exponent.nan_to_num(nan=1.0)
    return torch.where(v < 0.0, 2.0 - p, p).clamp(min=_LEAST_EXPONENT), torch.where(v < 0.0, -1.0, 1.0).to(v)
