"""The noise levels of a model (paper, Appendix C.2)."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from arcsm._runtime.random import Source, stratified_uniform_like

_MAX_SIGMA = 1e15  # its square and that of its inverse are numbers in single precision

MAX_LEVELS = 10_000  #: Largest number of levels; every evaluation of a density visits all of them.


@dataclass(frozen=True)
class NoiseLadder:
    """A geometric sequence of noise levels, from the largest down (paper, Appendix C.2).

    .. math:: \\sigma_1 > \\sigma_2 > \\dots > \\sigma_L, \\qquad \\sigma_i / \\sigma_{i+1} = \\text{const}

    The paper uses :math:`L = 10`, from 1.0 to 0.04 for MNIST and from 0.2 to 0.04 for CIFAR-10 and CelebA.

    Arguments:
        sigma_max: Standard deviation of the first level, in the units of the model's standardised data.
        sigma_min: Standard deviation of the last level. The model's density is that of the data plus this noise.
        levels: Number of levels :math:`L`, at most 10,000; 1 if and only if both ends are equal.
        continuous: Train on all values between the two ends (log-uniform, stratified). Otherwise train on the
            :math:`L` levels only, as the paper does. Samplers use the levels in both cases.

    Example:
        >>> ladder = NoiseLadder(sigma_max=1.0, sigma_min=0.25, levels=3)
        >>> [round(sigma, 4) for sigma in ladder.sigmas]
        [1.0, 0.5, 0.25]
    """

    sigma_max: float
    sigma_min: float
    levels: int = 10
    continuous: bool = True

    def __post_init__(self) -> None:
        got = f"got sigma_max={self.sigma_max!r:.60}, sigma_min={self.sigma_min!r:.60}"
        if not all(isinstance(sigma, Real) for sigma in (self.sigma_max, self.sigma_min)):
            raise TypeError(f"noise: expected numbers sigma_max >= sigma_min > 0, {got}")
        if not 0.0 < self.sigma_min <= self.sigma_max < math.inf:
            raise ValueError(f"noise: expected sigma_max >= sigma_min > 0, {got}")
        if self.sigma_max > _MAX_SIGMA or self.sigma_min < 1.0 / _MAX_SIGMA:
            raise ValueError(f"noise: expected sigmas from {1.0 / _MAX_SIGMA:g} to {_MAX_SIGMA:g}, {got}")
        if not isinstance(self.levels, Integral) or not 1 <= self.levels <= MAX_LEVELS:
            raise ValueError(
                f"noise: expected a whole number of levels from 1 to {MAX_LEVELS}, got {self.levels!r:.60}"
            )
        if (self.levels == 1) != (self.sigma_min == self.sigma_max):
            raise ValueError(
                f"noise: expected sigma_max > sigma_min, or levels=1 and equal values, got levels={self.levels}, "
                f"sigma_max={self.sigma_max}, sigma_min={self.sigma_min}"
            )

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The levels :math:`\\sigma_1, \\dots, \\sigma_L`, from the largest down."""
        return self.path(self.levels - 1)

    def path(self, steps: int) -> tuple[float, ...]:
        """Return ``steps + 1`` geometric levels from ``sigma_max`` down to ``sigma_min``."""
        if steps == 0:
            return (self.sigma_min,)
        ratio = math.log(self.sigma_min / self.sigma_max)
        inner = [self.sigma_max * math.exp(ratio * i / steps) for i in range(1, steps)]
        return (self.sigma_max, *inner, self.sigma_min)

    def sigma(self, level: int) -> float:
        """Return the standard deviation of a level, which must exist; 0 is the largest, -1 the smallest."""
        if not isinstance(level, Integral):
            raise TypeError(
                f"level: expected a whole number from {-self.levels} to {self.levels - 1}, got {level!r:.60}"
            )
        if not -self.levels <= level < self.levels:
            raise ValueError(f"level: expected {-self.levels} to {self.levels - 1}, got {level}")
        return self.sigmas[level]

    def draw(self, like: Tensor, generator: Source = None) -> Tensor:
        """Draw a noise level for each element of ``like``, with its shape, type and device.

        The draws are stratified (a Weyl sequence with a random start): together they cover the ladder evenly, which
        removes the variance that independent draws would add to a loss.
        """
        uniform = stratified_uniform_like(like, generator)
        if not self.continuous and self.levels > 1:
            uniform = (uniform * self.levels).floor() / (self.levels - 1)
        log_ratio = math.log(self.sigma_min / self.sigma_max)
        return (self.sigma_max * torch.exp(uniform * log_ratio)).to(like.dtype)
