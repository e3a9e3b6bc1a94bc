"""Conditions on columns: values, sets and ranges in all of the forms that users write them in."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from arcsm.estimators.column_inference import NumberRules
from arcsm.estimators.conditions import Conditions
from arcsm.estimators.encoder import Columns
from arcsm.queries import Intervals, Levels


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return pd.DataFrame({
        "age": np.arange(60) % 40 + 20,
        "city": ["Rome", "Oslo", "Bern"] * 20,
        "day": pd.date_range("2026-01-01", periods=60),
        "month": pd.period_range("2020-01", periods=60, freq="M"),
        "quarter": pd.period_range("2000Q1", periods=60, freq="Q"),
        "clock": [datetime.time(hour % 24) for hour in range(60)],
        "one": 1.0, "zero": 0.0,
    }).rename(columns={"zero": "twice"}).pipe(lambda table: pd.concat([table, table[["twice"]]], axis=1))  # fmt: skip


@pytest.fixture(scope="module")
def columns(table: pd.DataFrame) -> Columns:
    return Columns.infer(table)


_MONTH = pd.Period("2021-03", "M")


@pytest.mark.parametrize(
    ("name", "value", "same"),
    [
        ("age", np.array([30, 31]), [30, 31]),
        ("age", pd.Series([30, 31], index=[7, 8]), [30, 31]),
        ("age", pd.array([30, 31], "Int64"), [30, 31]),
        ("age", np.array(30), 30),
        ("city", pd.Series(["Rome"], dtype="category"), ["Rome"]),
        ("day", pd.date_range("2026-01-05", periods=2), [pd.Timestamp("2026-01-05"), pd.Timestamp("2026-01-06")]),
        ("month", "2021-03", _MONTH),
        ("month", datetime.date(2021, 3, 15), _MONTH),
        ("month", ["2021-03", pd.Timestamp("2021-04-01")], [_MONTH, _MONTH + 1]),
        ("month", (None, pd.Timestamp("2021-03-31")), (None, _MONTH)),
        ("quarter", "2005-08-20", pd.Period("2005Q3", "Q")),
        ("clock", ("08:00", "8:30"), (datetime.time(8), datetime.time(8, 30))),
    ],
)
def test_conditions_have_several_forms(columns: Columns, name: str, value: Any, same: Any) -> None:
    found, expected = (Conditions.parse(columns, {name: given}, "given") for given in (value, same))
    np.testing.assert_array_equal(found.numbers, expected.numbers)
    assert found.constraints == expected.constraints
    assert found.constraints or np.isfinite(found.numbers).any()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("age", np.array([[30, 31]]), r"expects single values in a set or list, got array\(\[30, 31\]\)"),
        ("age", range(0), "expects at least one value, got none"),
        ("age", {"a": 30}, r"expects a value like the fitted ones, a set .* range \(low, high\), got \{'a': 30\}"),
        ("day", "2026-02", r"expects a whole date, got '2026-02'; .* range \('2026-02-01', '2026-02-28'\)"),
        ("day", ("2026", None), r"expects a whole date, got '2026'; .* range \('2026-01-01', '2026-12-31'\)"),
        ("month", ("oops", None), "expects ends of a range, got 'oops'"),
        ("month", 3, "expected values such as the fitted ones"),
        ("age", (30, 31, 32), r"expects a range \(low, high\), got \(30, 31, 32\)"),
        ("age", (float("nan"), None), "expects ends of a range, got nan; None leaves one open"),
        ("one", 2.0, "does not contain 2.0 in the training rows; choose one that occurs"),
        ("one", [2.0, 3.0], "has the value 1 only"),
        ("one", ("a", None), r"expects ends of a range like 1, got \('a', None\)"),
        ("height", 2.0, "is unknown; known: age, city"),
        ("twice", 1, "is the name of several columns"),
        ("day", (3, None), "expects ends of a range, got 3"),
    ],
)
def test_other_conditions_are_one_line_errors(columns: Columns, name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^given: column '{name}' {message}") as error:
        Conditions.parse(columns, {name: value}, "given")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("step", "count"), [(0.1, 15), (1.0 / 3.0, 40)])
def test_ranges_include_their_ends_although_a_file_has_rounded_them(step: float, count: int) -> None:
    values = np.array([float(f"{step * place - 7.430213:.5g}") for place in range(count)])
    table = pd.DataFrame({"x": np.tile(values, 30)})
    columns = Columns.infer(table, NumberRules(most=100))
    for first in range(0, count, 3):
        for last in range(first, count, 5):
            conditions = Conditions.parse(columns, {"x": (values[first], values[last])}, "given")
            (constraint,) = conditions.constraints.values()
            numbers = np.rint(columns.kinds[0].encode(values))
            if isinstance(constraint, Levels):
                inside = np.isin(numbers, constraint.levels)
            else:
                assert isinstance(constraint, Intervals)
                inside = np.any([(low < numbers) & (numbers < high) for low, high in constraint.bounds], 0)
            assert inside.tolist() == [first <= place <= last for place in range(count)]
