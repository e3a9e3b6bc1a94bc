"""Checks of tables: columns that single precision cannot hold, repeated names and times in arrays are rejected."""

import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pytest

from arcsm.data.checks import check_holds_no_times, check_precision, check_unique_columns
from small_tables import normal


@pytest.mark.parametrize("size", [1e35, 1e-40])
def test_columns_beyond_single_precision_are_rejected(size: float) -> None:
    with pytest.raises(ValueError, match=r"column 'b' has values as (large|small) as .* out of the range"):
        check_precision(np.c_[normal(9), size * normal(9)], ("a", "b"), "t")


def test_columns_that_vary_too_little_for_single_precision_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"column 'b' varies by .* too little for single precision"):
        check_precision(np.c_[normal(9), 1.7e9 + 30.0 * normal(9)], ("a", "b"), "t")


def test_constant_and_missing_columns_are_accepted() -> None:
    check_precision(np.c_[normal(9), np.full(9, 1e9), np.full(9, np.nan)], ("a", "b", "c"), "t")


@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, datetime.date(2026, 1, 5)]],
        np.array([[1.0, None], [2.0, pd.Timestamp("2026-01-05")]], dtype=object),
        np.array([["2026-01-05"]], dtype="M8[D]"),
    ],
)
def test_times_in_arrays_are_rejected_in_one_line(rows: Any) -> None:
    with pytest.raises(ValueError, match=r"^X: expected numbers in an array, got '2026-01-05.*'; give dates .*frame$"):
        check_holds_no_times(rows)


@pytest.mark.parametrize("rows", [[[1.0, "x"]], [1.0], [], None, np.array([[1.0, pd.NaT]], dtype=object), np.eye(2)])
def test_other_arrays_hold_no_times(rows: Any) -> None:
    check_holds_no_times(rows)


def test_repeated_names_of_columns_are_rejected_in_one_line() -> None:
    table = pyarrow.table([[1.0], [2.0]], names=["a", "a"])
    for rows in (table, table.to_batches()[0], pd.DataFrame([[1.0, 2.0]], columns=["a", "a"])):
        with pytest.raises(ValueError, match=r"^X: expected different column names, got 'a' more than once$"):
            check_unique_columns(rows)
    check_unique_columns(table.select([0]))
    check_unique_columns(np.eye(2))
