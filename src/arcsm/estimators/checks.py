"""What a table must be, before an estimator looks into it."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from numbers import Real

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from arcsm.data.column_types import check_cells
from arcsm.estimators.encoder import is_categorical

LEAVE_OUT = "leave it out (for a command, --ignore)"
_TOLD_APART = 0.25  # share of different whole numbers that are different in double precision
_FEW_ROWS = 50  # below which names may all differ


def varies(numbers: NDArray[np.float64]) -> bool:
    """Whether every column of numbers ``(N, M)``, NaN where missing, has at least two values."""
    known = [column[~np.isnan(column)] for column in numbers.T]
    return all(len(column) > 1 and bool((column != column[0]).any()) for column in known)


def check_not_empty(table: pd.DataFrame | NDArray[np.float64]) -> None:
    """Every column must have a value.

    Raises:
        ValueError: which names the first that has none.
    """
    empty = np.asarray(pd.isna(table)).all(0)
    if empty.any():
        place = int(np.argmax(empty))
        name = table.columns[place] if isinstance(table, pd.DataFrame) else place
        raise ValueError(f"column {name!r} holds nothing but missing values; {LEAVE_OUT}")


def checked_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame of numbers and names: numbers that are kept as objects are made numbers.

    Raises:
        ValueError: for dates, lists, complex and infinite numbers.
    """
    checked = {}
    for place, name in enumerate(frame.columns):
        column = frame.iloc[:, place]
        check_cells(column, f"column {name!r}")
        if column.dtype == object:
            column = _of_numbers(column)
        if not is_categorical(column.dtype):
            infinite = np.isinf(column.to_numpy(dtype=float, na_value=np.nan))
            if infinite.any():
                raise ValueError(f"Input X contains infinity: column {name!r}, row {int(np.argmax(infinite))}")
        checked[place] = column
    found = pd.DataFrame(checked, index=frame.index)
    found.columns = frame.columns
    return found


def _of_numbers(column: pd.Series) -> pd.Series:
    """A column of objects as one of numbers, where all that it holds are numbers or missing."""
    known = column.dropna()
    if not len(known):
        return pd.Series(np.nan, index=column.index)
    are_numbers = [isinstance(value, Real | Decimal) and not isinstance(value, bool | np.bool_) for value in known]
    if not all(are_numbers):
        return column
    if any(isinstance(value, Fraction | Decimal) for value in known):
        return column.map(float, na_action="ignore").astype(float)
    return pd.to_numeric(column)


def check_numbers(table: pd.DataFrame | NDArray[np.float64]) -> None:
    """Double precision must tell most values of a column of numbers apart, and reach from the lowest to the highest.

    Raises:
        ValueError: which names the first of which that is not so.
    """
    frame = table if isinstance(table, pd.DataFrame) else pd.DataFrame(table)
    for place, name in enumerate(frame.columns):
        column = frame.iloc[:, place]
        if is_categorical(column.dtype):
            continue
        numbers = column.to_numpy(dtype=float, na_value=np.nan)
        low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
        if not np.isfinite(high - low):
            raise ValueError(
                f"column {name!r} has values from {low:g} to {high:g}, too far apart; {LEAVE_OUT}, or take logarithms"
            )
        if max(-low, high) > 2**53 and len(np.unique(numbers[~np.isnan(numbers)])) < _TOLD_APART * column.nunique():
            raise ValueError(
                f"column {name!r} has whole numbers most of which double precision cannot tell apart; {LEAVE_OUT}, or "
                "subtract the smallest"
            )


def check_repeating(table: pd.DataFrame | NDArray[np.float64]) -> None:
    """Names that hardly ever repeat say nothing.

    Raises:
        ValueError: which names the column.
    """
    if not isinstance(table, pd.DataFrame) or len(table) < _FEW_ROWS:
        return
    for place, name in enumerate(table.columns):
        column = table.iloc[:, place]
        if is_categorical(column.dtype) and column.nunique() > max(1, 0.5 * column.notna().sum()):
            raise ValueError(f"column {name!r} has another name in almost every row; {LEAVE_OUT}")
