"""Outlier scores of rows under an autoregressive model."""

from arcsm.anomaly.combination import Combination
from arcsm.anomaly.pit import (
    anderson_darling,
    kolmogorov_smirnov,
    lag_one_autocorrelation,
    normal_scores,
    pit_statistics,
    squared_normal_scores,
    tail_surprise,
)
from arcsm.anomaly.scores import negative_log_prob, outlier_scores, score_norms, score_sum

__all__ = [
    "Combination", "anderson_darling", "kolmogorov_smirnov", "lag_one_autocorrelation", "negative_log_prob",
    "normal_scores", "outlier_scores", "pit_statistics", "score_norms", "score_sum", "squared_normal_scores",
    "tail_surprise",
]  # fmt: skip
