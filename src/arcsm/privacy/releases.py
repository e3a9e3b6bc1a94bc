"""Counts and sums that are released with noise, and the account of what they reveal."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Releases:
    """Releases of sums over rows, each with Gaussian noise.

    A release has a *weight*: one row changes it by at most 1, and its noise has the variance ``noise² / weight``. With
    a total weight ``W``, all releases together are as private as one of sensitivity 1 with the noise
    ``noise / sqrt(W)``.

    Arguments:
        noise: The standard deviation of the noise of a release of weight 1.
        weight: The total weight of all releases.
        random: The source of the noise.

    Attributes:
        left: The weight that is not released yet.
    """

    def __init__(self, noise: float, weight: float, random: np.random.Generator) -> None:
        self.noise, self.left, self._random = noise, weight, random

    def count(self, counts: Array, weight: float = 1.0) -> Array:
        """Return noisy counts as whole numbers; a row may contribute to one of them."""
        return np.rint(self.sums(counts, 1.0, weight))

    def sums(self, sums: Array, sensitivity: float, weight: float = 1.0) -> Array:
        """Return sums with noise, which one row changes by a vector of a norm of at most ``sensitivity``."""
        self.left -= weight
        if self.left < -1e-9:
            raise RuntimeError("releases: more weight than the budget has")
        return sums + self._random.normal(0.0, self.noise_of(weight) * sensitivity, np.shape(sums))

    def noise_of(self, weight: float) -> float:
        """Return the standard deviation of the noise of counts with a weight."""
        return self.noise / math.sqrt(weight)
