"""Columns that say nothing about a row, by the share of their values that differ."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from arcsm.data.column_types import ColumnType
from arcsm.data.row_labels import SetAside, mostly_differ, reason_to_set_aside


@pytest.mark.parametrize(
    ("rows", "distinct", "missing", "expected"),
    [(100, 51, 0, True), (100, 50, 0, False), (49, 49, 0, False), (100, 49, 4, True)],
)
def test_more_than_half_of_the_known_names_of_enough_rows_must_differ(
    rows: int, distinct: int, missing: int, expected: bool
) -> None:
    names = [f"n{min(row, distinct - 1)}" for row in range(rows - missing)]
    column = pd.Series([*names, *[None] * missing], dtype=object, name="town")
    assert mostly_differ(column) is expected
    text = SetAside(f"{distinct} different names", False)
    assert reason_to_set_aside(column, ColumnType("name")) == (text if expected else None)


@pytest.mark.parametrize(("names", "expected"), [(20_000, True), (2_000, False)])
def test_names_that_recur_in_the_table_are_no_labels_of_random_rows(names: int, expected: bool) -> None:
    random = np.random.default_rng(0)
    rows = random.permutation(np.arange(20_000) % names)[:1_000]
    column = pd.Series([f"n{row}" for row in rows], name="town")
    assert mostly_differ(column)
    assert (reason_to_set_aside(column, ColumnType("name"), 20_000) is not None) is expected


@pytest.mark.parametrize(
    ("drawn", "highest", "expected"),
    [
        (120, 1_000, True),
        (120, 1_190, True),
        (120, 1_300, False),  # more numbers than rows
        (30, 1_000, False),  # as many random numbers may all differ by chance
    ],
)
def test_random_rows_of_a_table_have_labels_if_all_rows_do(drawn: int, highest: int, expected: bool) -> None:
    inner = 1 + np.random.default_rng(0).choice(highest - 2, drawn - 2, replace=False)
    numbers = np.concatenate([[0, highest - 1], inner])
    column, number = pd.Series(np.sort(numbers), name="order"), ColumnType("number")
    assert (reason_to_set_aside(column, number, 1_000) is not None) is expected
    assert reason_to_set_aside(column, number) is None  # of a table of these rows alone, they would be far apart
