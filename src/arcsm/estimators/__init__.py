"""Estimators for tables, as scikit-learn has them: fit, score, sample, fill, detect and explain."""

from arcsm.estimators.density import ScoreDensity
from arcsm.estimators.outliers import ScoreOutlierDetector

__all__ = ["ScoreDensity", "ScoreOutlierDetector"]
