"""Checks of a table before an estimator learns from it."""

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from arcsm.data.arrays import without_mask
from arcsm.data.column_types import check_cells, is_time, stray_text
from arcsm.data.row_labels import mostly_differ
from arcsm.estimators.column_types import missing_mask
from arcsm.estimators.encoder import Table, is_categorical

LEAVE_OUT = "leave it out (for a command, --ignore)"
_MIN_DISTINCT_FRACTION = 0.25  # of different integers that must differ in double precision


def check_not_empty(table: Table) -> None:
    """Check that no column holds only missing values."""
    empty = np.flatnonzero(missing_mask(table).all(0))
    names = [pd.DataFrame(table).columns[int(place)] for place in empty]
    _raise_faults({f"holds nothing but missing values; {LEAVE_OUT}": names})


def check_training_rows(table: Table, given: Any) -> None:
    """Check that a model can learn from every column of a table of at least two rows.

    A column must not be empty, have categories that mostly differ, span more than double precision can hold, or hold
    integers that double precision cannot distinguish. These are counted in the ``given`` rows, since an array in
    ``table`` has been converted to double precision.
    """
    if len(table) < 2:
        raise ValueError(f"Expected at least 2 samples to fit, got n_samples = {len(table)}")
    check_not_empty(table)
    frame, faults = pd.DataFrame(table), dict[str, list[Any]]()
    exact = frame if isinstance(table, pd.DataFrame) else pd.DataFrame(np.asarray(without_mask(given)))
    for place, name in enumerate(frame.columns):
        fault = _training_fault(frame.iloc[:, place], exact.iloc[:, place])
        if fault is not None:
            faults.setdefault(fault, []).append(name)
    _raise_faults(faults)


def _training_fault(column: pd.Series, exact: pd.Series) -> str | None:
    """Return why a model cannot learn from a column, or ``None``."""
    if is_time(column):
        return None
    if is_categorical(column.dtype):
        if not mostly_differ(column):
            return None
        stray = stray_text(column)
        if stray is not None:
            return f"has text among numbers, {stray}; mend it, or leave the column out (for a command, --ignore)"
        return f"has categories that differ in more than half of the rows; {LEAVE_OUT}"
    numbers = column.to_numpy(dtype=float, na_value=np.nan)
    low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
    if not np.isfinite(high - low):
        return f"has values from {low:g} to {high:g}, too far apart; {LEAVE_OUT}, or take logarithms"
    distinct = len(np.unique(numbers[~np.isnan(numbers)]))
    if max(-low, high) > 2**53 and distinct < _MIN_DISTINCT_FRACTION * exact.nunique():
        fault = "has integers most of which double precision cannot distinguish"
        return f"{fault}; {LEAVE_OUT}, or subtract the smallest"
    return None


def _raise_faults(faults: dict[str, list[Any]]) -> None:
    """Raise an error that names all columns by fault."""
    texts = []
    for fault, (first, *others) in ((fault, names) for fault, names in faults.items() if names):
        also = f" (also {', '.join(map(repr, others))})" if others else ""
        texts.append(f"column {first!r} {fault}{also}")
    if texts:
        raise ValueError("; ".join(texts))


def check_same_columns(columns: list[Any], fitted: list[Any]) -> None:
    """Check that columns are the fitted ones in their order."""
    if columns == fitted:
        return
    missing = [name for name in fitted if name not in columns]
    unexpected = [name for name in columns if name not in fitted]
    faults = [f"{what} {', '.join(map(repr, names))}" for what, names in
              (("missing", missing), ("unexpected", unexpected)) if names]  # fmt: skip
    raise ValueError(f"columns: expected {fitted}, got {columns}" + (f" ({'; '.join(faults)})" if faults else ""))


def check_numbers(frame: pd.DataFrame, numeric: Sequence[bool] | None = None) -> None:
    """Check that ``numeric`` columns, by default all, hold numbers in place of text."""
    faults = []
    for place, name in enumerate(frame.columns):
        column = frame.iloc[:, place]
        if is_categorical(column.dtype) and (numeric is None or numeric[place]):
            wrong = (column.notna() & pd.to_numeric(column.astype(object), errors="coerce").isna()).to_numpy()
            if wrong.any():
                row = int(wrong.argmax())
                faults.append(f"column {name!r}, row {row + 1}: expected a number, got {column.iloc[row]!r}")
    if faults:
        raise ValueError("; ".join(faults))


def checked_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a data frame of numbers, categories and times, in which objects that are numbers have a numeric dtype.

    Lists, complex and infinite numbers are errors.
    """
    columns, faults = {}, []
    for place, name in enumerate(frame.columns):
        column = frame.iloc[:, place]
        try:
            check_cells(column, f"column {name!r}")
        except ValueError as error:
            faults.append(str(error))
            continue
        if column.dtype == object:
            column = _as_numbers(column)
        if not is_categorical(column.dtype):
            infinite = np.isinf(column.to_numpy(dtype=float, na_value=np.nan))
            if infinite.any():
                faults.append(f"Input X contains infinity: column {name!r}, row {int(np.argmax(infinite)) + 1}")
        columns[place] = column
    if faults:
        raise ValueError("; ".join(faults))
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
