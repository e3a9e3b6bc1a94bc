"""Frequencies of Fourier features: sines and cosines of a value as inputs of a network."""

import math

import torch
from torch import Tensor

_MAX_ORDERED_LEVELS = 2048


def fourier_frequencies(count: int, largest: float) -> Tensor:
    """Return geometrically spaced frequencies from 1 to ``largest`` > 0, ``(count,)`` in double precision.

    A single frequency is the largest one.

    Example:
        >>> fourier_frequencies(3, 4.0).tolist()
        [1.0, 2.0, 4.0]
    """
    if not 0.0 < largest < math.inf:
        raise ValueError(f"max_frequency: expected a positive, finite number, got {largest}")
    steps = torch.linspace(0.0, 1.0, count, dtype=torch.float64) if count > 1 else torch.ones(count).double()
    return torch.exp(steps * math.log(largest))


def cosine_basis(levels: int) -> Tensor:
    """Return cosines along ordered levels, ``(levels, levels)``; those of a high frequency are small.

    .. math:: B_{kj} = \\frac{\\cos(\\pi j (k + \\tfrac12) / \\mathrm{levels})}{(1 + j)^2}

    If weights are :math:`B v`, gradient descent on :math:`v` changes them slowly along the levels before it makes them
    rough.

    Example:
        >>> cosine_basis(2)
        tensor([[ 1.0000,  0.1768],
                [ 1.0000, -0.1768]])

    Raises:
        ValueError: If the levels are more than 2048.
    """
    if levels > _MAX_ORDERED_LEVELS:
        raise ValueError(f"ordered: expected at most {_MAX_ORDERED_LEVELS} levels, got {levels}")
    j = torch.arange(levels, dtype=torch.get_default_dtype())
    return torch.cos(math.pi * j * (j[:, None] + 0.5) / levels) / (1.0 + j).square()
