"""Estimators of tables with scikit-learn's interface, and the quality of synthetic rows."""

from arcsm.estimators.classifier import ScoreClassifier
from arcsm.estimators.density import ScoreDensity
from arcsm.estimators.imputer import ScoreImputer
from arcsm.estimators.outliers import ScoreOutlierDetector
from arcsm.estimators.predictive_distribution import PredictiveDistribution
from arcsm.estimators.private_density import PrivateDensity
from arcsm.estimators.regressor import ScoreRegressor
from arcsm.estimators.synthesis_quality import SynthesisQuality

__all__ = [
    "PredictiveDistribution", "PrivateDensity", "ScoreClassifier", "ScoreDensity", "ScoreImputer",
    "ScoreOutlierDetector", "ScoreRegressor", "SynthesisQuality",
]  # fmt: skip
