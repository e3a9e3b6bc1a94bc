"""The one-dimensional engine: densities, distribution functions and quantiles of conditionals from their scores."""

from arcsm.conditionals.conditionals import (
    SINGLE_TOLERANCE,
    Accuracy,
    Conditionals,
    Count,
    EvaluationCache,
    Method,
    choose_method,
    compiled_scores,
)

__all__ = [
    "SINGLE_TOLERANCE", "Accuracy", "Conditionals", "Count", "EvaluationCache", "Method", "choose_method",
    "compiled_scores",
]  # fmt: skip
