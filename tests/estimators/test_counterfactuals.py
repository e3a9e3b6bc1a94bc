"""The change of one value that makes an outlier ordinary."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

from arcsm.estimators import ScoreOutlierDetector
from arcsm.estimators.counterfactuals import best_changes
from arcsm.estimators.detection import detection_table
from arcsm.estimators.reasons import changes, conditionals_by_place


@pytest.fixture(scope="module")
def fitted() -> tuple[ScoreOutlierDetector, pd.DataFrame]:
    """Return a detector of two related numbers, and rows.

    Those are an odd pair, an odd second value, an ordinary row, a row with a gap and two odd values, and an odd name.
    """
    random = np.random.default_rng(0)
    a = random.normal(size=600)
    table = pd.DataFrame({"a": a, "b": 100.0 + 10.0 * (2.0 * a + 0.2 * random.normal(size=600)), "c": "x"})
    rows = pd.DataFrame({"a": [1.0, 0.0, 0.5, np.nan, 0.5], "b": [80.0, 190.0, 110.0, 190.0, 110.0], "c": [*"xxxyy"]})
    return ScoreOutlierDetector(max_steps=300, random_state=0).fit(table), rows


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


def test_the_changed_row_has_the_score_that_is_reported(fitted: tuple[ScoreOutlierDetector, pd.DataFrame]) -> None:
    detector, rows = fitted
    conditionals = conditionals_by_place(detector, rows, np.array([[0, 1, 2]] * len(rows)))
    context = (detector.columns_, detector.scores_of_encoded, *detector.encode_rows(rows))
    found = best_changes(*context, conditionals)
    assert list(found) == list(range(5))
    names, kinds = list(rows.columns), detector.columns_.kinds
    for row, change in found.items():
        changed = rows.iloc[[row]].copy()
        changed[names[change.column]] = kinds[change.column].decode(np.array([change.number]))
        assert detector.score_samples(changed)[0] == pytest.approx(change.score, abs=1e-6)
        others = [
            best_changes(*context, {place: conditionals[place]})[row].score for place in conditionals if place[0] == row
        ]
        assert change.score == pytest.approx(max(others))


def test_rows_without_known_values_have_no_change(fitted: tuple[ScoreOutlierDetector, pd.DataFrame]) -> None:
    detector = fitted[0]
    empty = pd.DataFrame({"a": [np.nan], "b": [np.nan], "c": [None]})
    assert changes(detector, empty, conditionals_by_place(detector, empty, np.array([[0, 1]])), 0.0) == [""]


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
    assert (found["score"].to_numpy() >= detector.score_samples(rows) - 1e-3).all()
    changed = pl.from_pandas(rows)
    assert detector.counterfactuals(changed)["value"][4] == "x"
    with pytest.raises(ValueError, match="columns"):
        detector.counterfactuals(rows, columns=0)


def test_an_empty_row_of_an_array_leaves_the_labels_of_others_whole_numbers() -> None:
    x = np.random.default_rng(0).normal(size=(200, 1))
    detector = ScoreOutlierDetector(max_steps=200, random_state=0).fit(np.hstack([x, 2.0 * x, x]))
    found = detector.counterfactuals(np.array([[0.0, 9.0, 0.0], [np.nan] * 3, [np.nan, np.nan, 5.0]]), columns=1)
    assert found["column"].tolist() == [1, None, 2]
    assert [type(label) for label in found["column"]] == [int, type(None), int]
