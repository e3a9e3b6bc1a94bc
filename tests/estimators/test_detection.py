"""Lines about the rows of a scored table, with reasons in words."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from arcsm.estimators.detection import DetectionResult, detection_table
from small_tables import Scored


def test_reasons_name_expected_and_observed_values(scored: Scored) -> None:
    detector, rows = scored
    found = detection_table(detector, rows)
    assert len(found) == len(rows)
    assert found.loc[[3, 5, 7], "outlier"].all()
    assert found.loc[3, "because"].startswith("income: expected ")
    assert found.loc[3, "because"].split("; ")[0].endswith("saw 10000000")
    assert found.loc[5, "column_1"] == "visits"
    assert "city: expected" in found.loc[7, "because"]
    assert "saw elsewhere" in found.loc[7, "because"]
    assert found.loc[9, "column_1"] == "kind"
    assert (found.loc[~found["outlier"], ["because", "change"]] == "").all(axis=None)
    assert found.loc[3, "change"].startswith("income: 10000000 -> ")
    by_p = detection_table(detector, rows, threshold=0.02)
    assert ((by_p["p_value"] <= 0.02) == by_p["outlier"]).all()
    with pytest.raises(ValueError, match="p-value: expected at least"):
        detection_table(detector, rows, threshold=1e-4)


def test_a_table_scored_in_parts_is_scored_as_a_whole(scored: Scored) -> None:
    detector, rows = scored
    whole, written = detection_table(detector, rows), []
    parts = [rows.iloc[start : start + 13].reset_index(drop=True) for start in range(0, len(rows), 13)]
    found = DetectionResult.from_parts(detector, parts, write=written.append)
    pd.testing.assert_frame_equal(pd.concat(written, ignore_index=True), whole, rtol=1e-9)
    np.testing.assert_allclose(found.scores, whole["score"], rtol=1e-9)
    assert found.outliers == whole["outlier"].sum()
    expected = whole.sort_values("score", kind="stable").head(20)
    assert found.lowest["row"].tolist() == expected["row"].tolist()
    pd.testing.assert_frame_equal(found.rows, rows.iloc[expected["row"] - 1].reset_index(drop=True))
