"""Frequencies of Fourier features: sines and cosines of a value as inputs of a network."""

import math

import torch
from torch import Tensor


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
