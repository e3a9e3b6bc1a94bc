"""Outlier scores of rows under an autoregressive model."""

from arcsm.anomaly.statistics import (
    Combination,
    anderson_darling,
    auroc,
    auroc_standard_error,
    features,
    kolmogorov_smirnov,
    lag_one,
    negative_log_prob,
    normal_scores,
    pit_statistics,
    score_norms,
    score_sum,
    squared_normal_scores,
    tail_surprise,
)

__all__ = [
    "Combination",
    "anderson_darling",
    "auroc",
    "auroc_standard_error",
    "features",
    "kolmogorov_smirnov",
    "lag_one",
    "negative_log_prob",
    "normal_scores",
    "pit_statistics",
    "score_norms",
    "score_sum",
    "squared_normal_scores",
    "tail_surprise",
]
