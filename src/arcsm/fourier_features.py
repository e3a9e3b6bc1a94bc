"""Frequencies of the sines and cosines that networks are shown of a value."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def fourier_frequencies(count: int, largest: float) -> Tensor:
    """Geometric ones from 1 to the largest (a single one is the largest), ``(count,)`` in double precision.

    Raises:
        ValueError: for a negative number of them, or a largest that is not positive and finite.

    Example:
        >>> fourier_frequencies(3, 4.0).tolist()
        [1.0, 2.0, 4.0]
    """
    if not (count >= 0 and 0.0 < largest < math.inf):
        raise ValueError(
            f"expected a number of sinusoids and a positive max_frequency, got sinusoids={count}, "
            f"max_frequency={largest}"
        )
    steps = torch.linspace(0.0, 1.0, count, dtype=torch.float64) if count > 1 else torch.ones(count).double()
    return torch.exp(steps * math.log(largest))
