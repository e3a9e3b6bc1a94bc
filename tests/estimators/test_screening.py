"""Rows that may be outliers are left out of a detector's training."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from arcsm.estimators import ScoreOutlierDetector
from arcsm.estimators.column_inference import DEFAULT_RULES
from arcsm.estimators.encoder import Columns
from arcsm.estimators.screening import suspicious_rows

QUICK = {"max_steps": 60, "n_estimators": 1, "random_state": 0}


def with_a_group(rows: int = 300, outliers: int = 20) -> np.ndarray:
    """Return normal rows followed by outliers that resemble each other."""
    random = np.random.default_rng(0)
    normal = random.normal(size=(rows, 3))
    return np.concatenate([normal, [4.0, -4.0, 4.0] + 0.1 * random.normal(size=(outliers, 3))])


def kinds_and_numbers(table: object) -> tuple[list, np.ndarray]:
    columns = Columns.infer(table, DEFAULT_RULES)
    return list(columns.kinds), columns.encode(table)


def test_outliers_in_a_group_are_suspicious() -> None:
    kinds, x = kinds_and_numbers(with_a_group())
    found = suspicious_rows(kinds, x, 0.06, seed=0)
    assert len(found) == round(0.18 * len(x))
    assert set(range(300, 320)) <= set(found.tolist())
    assert np.array_equal(found, suspicious_rows(kinds, x, 0.06, seed=0))
    assert len(suspicious_rows(kinds, x, 0.4, seed=0)) == len(x) // 2


def test_rare_names_and_gaps_are_seen() -> None:
    table = pd.DataFrame({"name": ["a"] * 150 + ["b"] * 147 + ["c"] * 3, "number": np.arange(300) % 7 + 0.5})
    table.loc[:5, "number"] = np.nan
    kinds, x = kinds_and_numbers(table)
    found = suspicious_rows(kinds, x, 0.01, seed=0)
    assert set(found.tolist()) <= {*range(6), 297, 298, 299}


def test_a_detector_recognises_the_outliers_that_it_was_given() -> None:
    rows = with_a_group()
    found = {}
    for contamination in ("auto", 0.06):
        detector = ScoreOutlierDetector(contamination, **QUICK).fit(rows)
        found[contamination] = roc_auc_score(np.arange(320) >= 300, -detector.score_samples(rows))
    assert found[0.06] > 0.99
    assert found[0.06] > found["auto"]
    assert (detector.predict(rows) == -1).sum() == pytest.approx(0.06 * 320, abs=2)
    assert set(range(300, 320)) <= set(detector.screened_rows_.tolist())
    assert len(detector.held_out_scores_) == len(detector.held_out_rows_) > len(rows) // 10  # of all rows


def test_clean_rows_are_all_fitted_by_default() -> None:
    detector = ScoreOutlierDetector(**QUICK).fit(with_a_group(outliers=0))
    assert not len(detector.screened_rows_)
