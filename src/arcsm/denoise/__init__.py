"""Restoration of rows that a known corruption has damaged, one dimension after another (paper, Section 5.4)."""

from arcsm.denoise.corruptions import Corruption, GaussianNoise, MissingValues, SaltAndPepper
from arcsm.denoise.particles import Particles, particles
from arcsm.denoise.restoration import langevin, posterior, tweedie

__all__ = [
    "Corruption",
    "GaussianNoise",
    "MissingValues",
    "Particles",
    "SaltAndPepper",
    "langevin",
    "particles",
    "posterior",
    "tweedie",
]
