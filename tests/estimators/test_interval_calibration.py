"""Intervals that hold as many held-out values as they promise."""

from __future__ import annotations

import numpy as np
import pytest

from arcsm.estimators.interval_calibration import IntervalCalibration
from arcsm.estimators.value_conditionals import NODES


def test_few_held_out_values_calibrate_nothing_and_a_large_share_is_never_made_smaller_by_them() -> None:
    centrality = (np.linspace(0.1, 0.5, 9), np.linspace(0.0, 0.5, 51), np.full(20, 1.0))
    calibration = IntervalCalibration(centrality, {})
    assert [calibration.central_share(m, 0.5) for m in (0, 1)] == [0.5, 0.25]
    assert calibration.central_share(1, 0.999) == 0.999
    assert 0.999 < calibration.central_share(2, 0.9) < 1.0


def test_ranks_calibrate_columns_with_a_frequent_value_if_there_are_enough() -> None:
    centrality = (np.linspace(0.0, 0.5, 51),) * 3
    calibration = IntervalCalibration(centrality, {0: np.linspace(0.0, 0.8, 9), 1: np.linspace(0.0, 0.8, 99)})
    assert calibration.likely_share(0, 0.5) == calibration.central_share(0, 0.5)
    assert calibration.likely_share(1, 0.5) == pytest.approx(0.4 + 1.0 / NODES)
    assert calibration.likely_share(1, 0.995) == 1.0
    assert calibration.likely_share(2, 0.5) == calibration.central_share(2, 0.5)
