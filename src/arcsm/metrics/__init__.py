"""Measures of a density model: likelihood, calibration, distances between samples, and cost."""

from arcsm.metrics.calibration import Uniformity, pit_uniformity
from arcsm.metrics.likelihood import add_smallest_noise, bits_per_dim, gaussian_mixture_scores, summary
from arcsm.metrics.two_sample import energy_distance, sliced_wasserstein

__all__ = [
    "Uniformity",
    "add_smallest_noise",
    "bits_per_dim",
    "energy_distance",
    "gaussian_mixture_scores",
    "pit_uniformity",
    "sliced_wasserstein",
    "summary",
]
