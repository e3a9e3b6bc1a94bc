"""The change of one value that makes an outlier ordinary."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

from arcsm.estimators import ScoreOutlierDetector
from arcsm.estimators.detection import detection_table


@pytest.fixture(scope="module")
def fitted() -> tuple[ScoreOutlierDetector, pd.DataFrame]:
    """Return a detector of two related numbers, and rows.

    Those are an odd pair, an odd second value, an ordinary row, a row with a gap and two odd values, and an odd name.
    """
    random = np.random.default_rng(0)
    a = random.normal(size=300)
    table = pd.DataFrame({"a": a, "b": 100.0 + 10.0 * (2.0 * a + 0.2 * random.normal(size=300)), "c": "x"})
    rows = pd.DataFrame({"a": [1.0, 0.0, 0.5, np.nan, 0.5], "b": [80.0, 190.0, 110.0, 190.0, 110.0], "c": [*"xxxyy"]})
    return ScoreOutlierDetector(max_steps=100, n_estimators=1, random_state=0).fit(table), rows


def test_the_change_is_that_of_the_value_that_does_not_fit_the_others(
    fitted: tuple[ScoreOutlierDetector, pd.DataFrame],
) -> None:
    detector, rows = fitted
    found = detection_table(detector, rows)
    assert found["outlier"].tolist() == [True, True, False, True, True]
    column, _, values = found["change"][0].partition(": ")
    old, new = map(float, values.split(" -> "))
    assert old == rows[column][0]
    assert new == pytest.approx({"a": -1.0, "b": 120.0}[column], abs={"a": 0.4, "b": 8.0}[column])
    changed = rows.iloc[:1].assign(**{column: new})
    assert detector.predict(changed) == 1
    assert found["change"][1].startswith("b: 190 -> ")
    assert found["change"][2] == ""
    assert found["change"][3] == ""  # two values are odd, so no single change will do
    assert found["change"][4] == "c: y -> x"


def test_counterfactuals_are_a_frame_like_the_rows(fitted: tuple[ScoreOutlierDetector, pd.DataFrame]) -> None:
    detector, rows = fitted
    rows = pd.concat([rows, pd.DataFrame({"a": [np.nan], "b": [np.nan], "c": [None]})]).set_axis([*"pqrstu"])
    found = detector.counterfactuals(rows)
    assert list(found.index) == [*"pqrstu"]
    assert found["column"].tolist()[1:5] == ["b", *found["column"][2:4], "c"]
    assert found["value"]["t"] == "x"
    assert found["value"]["q"] == pytest.approx(100.0, abs=5.0)
    assert found["outlier"].tolist() == [False, False, False, True, False, False]
    assert found.loc["u", ["column", "value"]].isna().all()
    assert found["score"]["u"] == pytest.approx(detector.score_samples(rows)[-1])
    for name in "pqrst":
        row = rows.loc[[name]].assign(**{found["column"][name]: found["value"][name]})
        assert detector.score_samples(row)[0] == pytest.approx(found["score"][name], abs=1e-6)
    assert detector.counterfactuals(pl.from_pandas(rows))["value"][4] == "x"
    with pytest.raises(ValueError, match="columns"):
        detector.counterfactuals(rows, columns=0)


def test_an_empty_row_of_an_array_leaves_the_labels_of_others_whole_numbers() -> None:
    x = np.random.default_rng(0).normal(size=(100, 1))
    detector = ScoreOutlierDetector(max_steps=50, n_estimators=1, random_state=0).fit(np.hstack([x, 2.0 * x, x]))
    found = detector.counterfactuals(np.array([[0.0, 9.0, 0.0], [np.nan] * 3, [np.nan, np.nan, 5.0]]), columns=1)
    assert found["column"].tolist() == [1, None, 2]
    assert [type(label) for label in found["column"]] == [int, type(None), int]
