"""Estimators of tables with scikit-learn's interface, and the quality of synthetic rows."""

from arcsm.estimators.density import ScoreDensity
from arcsm.estimators.outliers import ScoreOutlierDetector
from arcsm.estimators.synthesis_quality import SynthesisQuality

__all__ = ["ScoreDensity", "ScoreOutlierDetector", "SynthesisQuality"]
