"""Measures of a density model: likelihood, calibration, distances between samples, detection of outliers, cost."""

from arcsm.metrics.calibration import Uniformity, pit_uniformity
from arcsm.metrics.detection import auroc, auroc_standard_error
from arcsm.metrics.likelihood import add_smallest_noise, bits_per_dim, gaussian_mixture_scores, mean_and_standard_error
from arcsm.metrics.two_sample import energy_distance, sliced_wasserstein

__all__ = [
    "Uniformity", "add_smallest_noise", "auroc", "auroc_standard_error", "bits_per_dim", "energy_distance",
    "gaussian_mixture_scores", "mean_and_standard_error", "pit_uniformity", "sliced_wasserstein",
]  # fmt: skip
