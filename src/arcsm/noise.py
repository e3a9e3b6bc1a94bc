"""The ladder of noise levels that a model is trained and sampled on (paper, Appendix C.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from arcsm._runtime.random import Source, stratified_uniform_like


@dataclass(frozen=True)
class NoiseLadder:
    """A geometric sequence of noise levels, the largest first.

    .. math:: \\sigma_1 > \\sigma_2 > \\dots > \\sigma_L, \\qquad \\sigma_i / \\sigma_{i+1} = \\text{const}

    Source: paper, Appendix C.2 (:math:`L = 10`; MNIST 1.0 to 0.04; CIFAR-10 and CelebA 0.2 to 0.04).

    Arguments:
        sigma_max: Standard deviation of the first level, in the units of the model's standardised data.
        sigma_min: Standard deviation of the last level; the model's density is that of the data with this noise.
        levels: Number of levels :math:`L`.
        continuous: Train on every sigma between the two ends (log-uniform, stratified) in place of the
            :math:`L` levels alone, as the paper does. The levels stay the steps of the samplers.

    Raises:
        ValueError: unless ``sigma_max >= sigma_min > 0`` and ``levels >= 1``; one level has one sigma.

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
        if not 0.0 < self.sigma_min <= self.sigma_max < math.inf:
            raise ValueError(
                f"noise: expected sigma_max >= sigma_min > 0, "
                f"got sigma_max={self.sigma_max}, sigma_min={self.sigma_min}"
            )
        if not isinstance(self.levels, Integral) or self.levels < 1:
            raise ValueError(f"noise: expected a whole number of levels >= 1, got {self.levels}")
        if (self.levels == 1) != (self.sigma_min == self.sigma_max):
            raise ValueError(
                f"noise: one level has one sigma and several have two ends, got levels={self.levels}, "
                f"sigma_max={self.sigma_max}, sigma_min={self.sigma_min}"
            )

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The levels :math:`\\sigma_1, \\dots, \\sigma_L`, the largest first."""
        return self.path(self.levels - 1)

    def path(self, steps: int) -> tuple[float, ...]:
        """``steps + 1`` geometric sigmas from ``sigma_max`` down to ``sigma_min``."""
        if steps == 0:
            return (self.sigma_min,)
        ratio = math.log(self.sigma_min / self.sigma_max)
        inner = [self.sigma_max * math.exp(ratio * i / steps) for i in range(1, steps)]
        return (self.sigma_max, *inner, self.sigma_min)

    def sigma(self, level: int) -> float:
        """Sigma of a level; 0 is the largest, -1 the smallest.

        Raises:
            ValueError: for a level that the ladder does not have.
        """
        if not -self.levels <= level < self.levels:
            raise ValueError(f"level: expected {-self.levels} to {self.levels - 1}, got {level}")
        return self.sigmas[level]

    def draw(self, like: Tensor, generator: Source = None) -> Tensor:
        """One training sigma for each element of ``like`` (same shape, type and device).

        The draws are stratified: over the whole tensor they cover the ladder evenly (a Weyl sequence with a
        random start), which takes out the variance that independent draws of sigma would add to a loss.
        """
        uniform = stratified_uniform_like(like, generator)
        if not self.continuous and self.levels > 1:
            uniform = (uniform * self.levels).floor() / (self.levels - 1)
        log_ratio = math.log(self.sigma_min / self.sigma_max)
        return (self.sigma_max * torch.exp(uniform * log_ratio)).to(like.dtype)
