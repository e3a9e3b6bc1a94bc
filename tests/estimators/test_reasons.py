"""Reasons in words: they contradict neither themselves nor the row, and every flagged row has one."""

from __future__ import annotations

import copy
import re

import numpy as np
import pandas as pd
import pytest

from arcsm.estimators import ScoreOutlierDetector, reasons
from arcsm.estimators.column_types import Categories, Column, Grid
from arcsm.estimators.continua import Identity
from arcsm.estimators.detection import detection_table
from arcsm.estimators.value_conditionals import ValueConditional
from small_tables import QUICK, Scored, normal, use_small_models

JOINT = r"\w+ = \S+ with \w+ = \S+: a less likely pair than in \d+ % of the fitted rows"


def contradicts(reason: str) -> bool:
    """Return whether the value that was seen is among the expected ones."""
    expected, seen = re.fullmatch(r"\w+: expected (.*), saw (.*)", reason).groups()
    for part in expected.split(" or "):
        try:
            low, _, high = part.partition(" to ")
            if float(low) <= float(seen) <= float(high or low):
                return True
        except ValueError:
            if part == seen:
                return True
    return False


def test_no_value_lies_among_the_values_expected_in_its_place(scored: Scored) -> None:
    detector, rows = copy.deepcopy(scored[0]).set_contamination(0.5), scored[1]
    found = detection_table(detector, rows)
    because = found["because"][found["outlier"]]
    assert len(because) > 20
    for reason in "; ".join(because).split("; "):
        assert re.fullmatch(JOINT, reason) or not contradicts(reason), reason


def test_values_that_are_all_expected_are_a_reason_together(scored: Scored) -> None:
    detector, rows = scored
    excess = np.zeros((1, rows.shape[1]))
    excess[0, [1, 5]] = np.quantile(detector.fitted_excess_[:, [1, 5]], 0.02, axis=0)
    share = (detector.fitted_excess_[:, [1, 5]].sum(1) > excess.sum()).mean()
    [text] = reasons.reasons(detector, rows.head(1), excess, {})
    pair = [f"visits = {rows['visits'][0]}", f"income = {rows['income'][0]:.0f}"]
    pair = pair if excess[0, 1] < excess[0, 5] else pair[::-1]
    assert text.startswith(f"{' with '.join(pair)}: a less likely pair than in ")
    assert f"in {int(100 * share)} % of" in text
    [text] = reasons.reasons(detector, rows.head(1).assign(income=np.nan), excess, {})
    assert "income" not in text
    assert "visits" in text


CITY = Categories(("Rome", "Oslo", "Bern"), 100)
WHOLE = Grid(1.0, 10.0, 30, whole=True)
REAL = Identity(0.0, 1.0, -9.0, 9.0)


@pytest.mark.parametrize(
    ("kind", "nodes", "log_density", "value", "log_density_here", "expected"),
    [
        (REAL, np.linspace(-2, 2, 40), -(np.linspace(-2, 2, 40) ** 2), 3.0, -9.0, "-1.795 to 1.795"),
        (REAL, np.linspace(-2, 2, 40), -(np.linspace(-2, 2, 40) ** 2), 1.7, -2.9, ""),
        (WHOLE, np.repeat([2.0, 4.0], 20), np.zeros(40), 13, -9.0, "12 or 14"),
        (CITY, np.repeat([0.0, 1.0], [30, 10]), np.repeat([0.0, -1.0], [30, 10]), "Oslo", -1.0, ""),
        (CITY, np.repeat([0.0, 1.0], 20), np.repeat([-0.69, -0.70], 20), "Oslo", -0.70 - 1e-12, ""),  # but for rounding
        (CITY, np.repeat([0.0, 1.0], [20, 20]), np.zeros(40), "Paris", -5.0, "Rome or Oslo"),
    ],
)
def test_expected_values_are_the_most_likely_ones(
    kind: Column, nodes: np.ndarray, log_density: np.ndarray, value: object, log_density_here: float, expected: str
) -> None:
    number = float(kind.encode(np.array([value], dtype=object))[0])
    conditional = ValueConditional(nodes, log_density, number, log_density_here)
    assert reasons.expected_and_seen(kind, conditional, value) == (expected, str(value).removesuffix(".0"))


def test_gross_errors_do_not_widen_the_expected_values(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    table = pd.DataFrame({"a": normal(120), "b": np.round(normal(120, 1), 1)})
    largest = table.max()
    table.loc[7, ["a", "b"]] = [500.0, 900.0]
    detector = ScoreOutlierDetector(**QUICK).fit(table)
    rows = pd.concat([table.iloc[[7, 8]], pd.DataFrame({"a": [520.0], "b": [900.0]})])
    _, high = detector.expected(rows)
    assert (high <= largest + 1e-9).all(axis=None)
    because = detection_table(detector, rows)["because"]
    assert because[0].startswith("b: expected -")
    for reason in "; ".join(because[because != ""]).split("; "):
        assert float(re.search(r" to (\S+), saw", reason).group(1)) < 5.0
