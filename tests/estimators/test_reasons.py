"""Reasons in words: they contradict neither themselves nor the row, and every flagged row has one."""

from __future__ import annotations

import copy
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch

from arcsm.estimators import ScoreOutlierDetector, reasons
from arcsm.estimators.column_types import Categories, Column, Grid
from arcsm.estimators.continua import Identity
from arcsm.estimators.detection import detection_table
from arcsm.estimators.table_model import TableModel
from arcsm.estimators.value_conditionals import NODES, ValueConditional
from small_tables import QUICK, Scored, detector_and_outliers, normal, use_small_models

JOINT = r"\w+ = \S+ with \w+ = \S+: a less likely pair than in \d+ % of the fitted rows"


@pytest.fixture(scope="module")
def scored() -> Scored:
    return detector_and_outliers()


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
        (
            REAL,
            np.r_[np.linspace(-3, -2, 20), np.linspace(2, 3, 20)],
            np.zeros(40),
            0.0,
            -9.0,
            "-3 to -2 or 2 to 3",
        ),
        (REAL, np.linspace(0, 1, 40), np.zeros(40), 1.00001, -9.0, "0 to 1"),
        (WHOLE, np.repeat([2.0, 4.0], 20), np.zeros(40), 13, -9.0, "12 or 14"),
        (
            CITY,
            np.repeat([0.0, 1.0], [39, 1]),
            np.repeat([0.0, -3.0], [39, 1]),
            "Oslo",
            -3.0,
            "Rome",
        ),
        (CITY, np.repeat([0.0, 1.0], [30, 10]), np.repeat([0.0, -1.0], [30, 10]), "Oslo", -1.0, ""),
        (CITY, np.repeat([0.0, 1.0], 20), np.repeat([-0.69, -0.70], 20), "Oslo", -0.70 - 1e-12, ""),  # but for rounding
        (CITY, np.repeat([2.0, 1.0], [10, 30]), np.zeros(40), "Rome", -5.0, "Oslo or Bern"),
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
    monkeypatch.setattr(TableModel, "conditional_quantiles", lambda *_: torch.full((6, NODES), 1e6).double())
    found = reasons.conditionals_by_place(detector, rows, np.array([[0, 1]] * 3))  # no quantile is plausible
    texts = reasons.reasons(detector, rows, np.array([[-9.0, -8.0]] * 3), found)
    low, high = table["a"].drop(7).min(), table["a"].drop(7).max()
    assert texts[2].startswith(f"a: expected {low:.4g} to {high:.4g}, saw 520; b: expected")
    assert re.fullmatch(JOINT, texts[1])


def test_expected_values_occur_in_the_fitted_rows(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, rows = scored
    table = rows.head(1)
    quantiles = torch.linspace(-5.0, 1e4, NODES).double()
    monkeypatch.setattr(TableModel, "conditional_quantiles", lambda _, x, *__: quantiles.expand(len(x), -1))
    kinds = detector.columns_.kinds
    columns = [d for d in detector.columns_.modelled if kinds[d].discrete]
    conditionals = reasons.conditionals_by_place(detector, table, np.array([columns]))
    assert len(conditionals) > 2
    for (_, d), conditional in conditionals.items():
        assert conditional is not None
        levels = detector.limits_.levels[detector.columns_.modelled.index(d)]
        assert np.isin(conditional.nodes, levels).all()


def test_a_tenth_of_normal_values_is_unexpected_where_many_are_zero() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=2500)
    amount = np.where(rng.random(2500) < 0.35, 0.0, np.exp(3.0 + 0.4 * x + 0.6 * rng.normal(size=2500)).round(2))
    table = pd.DataFrame({"x": x, "amount": amount})
    detector = ScoreOutlierDetector(max_steps=400, validation_fraction=0.2, random_state=0).fit(table[:1000])
    new = table[1000:].reset_index(drop=True)

    def expected_amounts(rows: pd.DataFrame) -> np.ndarray:
        found = reasons.conditionals_by_place(detector, rows, np.full((len(rows), 1), 1))
        kind = detector.columns_.kinds[1]
        return np.array(
            [reasons.expected_and_seen(kind, found[row, 1], rows["amount"][row])[0] for row in range(len(rows))]
        )

    texts = expected_amounts(new)
    high = expected_amounts(pd.DataFrame({"x": [-1.0, 0.0], "amount": 1e4}))
    assert all(text.startswith("0 to ") for text in high)  # zeros are common
    of_zeros = (texts[amount[1000:] == 0.0] != "").mean()
    error = math.sqrt(0.09 / 200)  # of the held-out rows
    assert (texts != "").mean() == pytest.approx(0.1, abs=3.0 * error)
    assert of_zeros < 0.2
