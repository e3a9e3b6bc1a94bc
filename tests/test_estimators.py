"""Estimators for tables: scikit-learn's own checks, tables of every kind, gaps, explanations."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from arcsm.estimators import ScoreDensity, ScoreOutlierDetector

QUICK: dict[str, Any] = {"max_steps": 20, "n_estimators": 1, "hidden_features": (16,), "random_state": 0}


@parametrize_with_checks([ScoreDensity(**QUICK), ScoreOutlierDetector(**QUICK)])
def test_scikit_learn_accepts_them(estimator: Any, check: Any) -> None:
    check(estimator)
