"""Restoration of rows with a known corruption, one dimension after another (paper, Section 5.4)."""

from arcsm.denoise.corruptions import Corruption, GaussianNoise, MissingValues, SaltAndPepper
from arcsm.denoise.particle_filter import WeightedCandidates, particle_filter, systematic_resampling
from arcsm.denoise.restoration import langevin, posterior, tweedie

__all__ = [
    "Corruption", "GaussianNoise", "MissingValues", "SaltAndPepper", "WeightedCandidates", "langevin",
    "particle_filter", "posterior", "systematic_resampling", "tweedie",
]  # fmt: skip
