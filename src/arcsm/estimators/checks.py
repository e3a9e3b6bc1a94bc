"""Checks of a table before an estimator learns from it."""

from decimal import Decimal
from fractions import Fraction
from numbers import Real

import numpy as np
import pandas as pd

from arcsm.data.column_types import check_cells, is_time
from arcsm.estimators.column_types import missing_mask
from arcsm.estimators.encoder import Table, is_categorical

LEAVE_OUT = "leave it out (for a command, --ignore)"
_MIN_DISTINCT_FRACTION = 0.25  # of different integers that must differ in double precision
_MIN_ROWS_OF_CATEGORIES = 50  # in a smaller table, categories may all differ


def check_not_empty(table: Table) -> None:
    """Check that no column holds only missing values."""
    empty = missing_mask(table).all(0)
    if empty.any():
        name = pd.DataFrame(table).columns[int(np.argmax(empty))]
        raise ValueError(f"column {name!r} holds nothing but missing values; {LEAVE_OUT}")


def check_training_rows(table: Table) -> None:
    """Check that a model can learn from every column of a table of at least two rows.

    A column must not be empty, have a different category in almost every row, span more than double precision can hold,
    or hold integers that double precision cannot distinguish.
    """
    if len(table) < 2:
        raise ValueError(f"Expected at least 2 samples to fit, got n_samples = {len(table)}")
    check_not_empty(table)
    frame = pd.DataFrame(table)
    for place, name in enumerate(frame.columns):
        column = frame.iloc[:, place]
        if is_time(column):
            continue
        if is_categorical(column.dtype):
            if len(frame) >= _MIN_ROWS_OF_CATEGORIES and column.nunique() > max(1, 0.5 * column.notna().sum()):
                raise ValueError(f"column {name!r} has a different category in almost every row; {LEAVE_OUT}")
            continue
        numbers = column.to_numpy(dtype=float, na_value=np.nan)
        low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
        if not np.isfinite(high - low):
            raise ValueError(
                f"column {name!r} has values from {low:g} to {high:g}, too far apart; {LEAVE_OUT}, or take logarithms"
            )
        distinct = len(np.unique(numbers[~np.isnan(numbers)]))
        if max(-low, high) > 2**53 and distinct < _MIN_DISTINCT_FRACTION * column.nunique():
            raise ValueError(
                f"column {name!r} has integers most of which double precision cannot distinguish; {LEAVE_OUT}, or "
                "subtract the smallest"
            )


def checked_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a data frame of numbers, categories and times, in which objects that are numbers have a numeric dtype.

    Lists, complex and infinite numbers are errors.
    """
    columns = {}
    for place, name in enumerate(frame.columns):
        column = frame.iloc[:, place]
        check_cells(column, f"column {name!r}")
        if column.dtype == object:
            column = _as_numbers(column)
        if not is_categorical(column.dtype):
            infinite = np.isinf(column.to_numpy(dtype=float, na_value=np.nan))
            if infinite.any():
                raise ValueError(f"Input X contains infinity: column {name!r}, row {int(np.argmax(infinite)) + 1}")
        columns[place] = column
    return pd.DataFrame(columns, index=frame.index).set_axis(frame.columns, axis=1)


def _as_numbers(column: pd.Series) -> pd.Series:
    """Convert a column of objects to numbers if all of its values are numbers; otherwise return it unchanged."""
    known = column.dropna()
    if not len(known):
        return pd.Series(np.nan, index=column.index)
    if not all(isinstance(value, Real | Decimal) and not isinstance(value, bool | np.bool_) for value in known):
        return column
    if any(isinstance(value, Fraction | Decimal) for value in known):
        return column.map(float, na_action="ignore").astype(float)
    return pd.to_numeric(column)
