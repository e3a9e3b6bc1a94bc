"""Types of table columns: numbers, truth values, names, and cells that no table may hold."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow

MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "?")
TRUTH = ("True", "TRUE", "true", "False", "FALSE", "false")  # read as 1 and 0
LEADING_ZERO = r"0\d+"  # a postcode, say, whose zeros matter

_DATE = r"(\d{4}([-/.])\d{1,2}\2\d{1,2}|\d{1,2}([-/.])\d{1,2}\3(\d{4}|\d{2}))([ T]\d{1,2}:\d{2}.*)?"
_TIME_TYPES = (datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64, pd.Period)
_MIN_NUMBER_FRACTION = 0.9  # of a text column's cells; the other cells are then mistakes
_MIN_DATE_FRACTION = 0.9  # of a text column's distinct cells
_MAX_NUMERIC_CODES = 20  # distinct numbers that may serve as names among other names

_DATES = "dates or times; turn them into numbers, such as days, or leave them out (for a command, --ignore)"
_LISTS = "lists, not single values; leave it out"
_COMPLEX = "complex numbers; give their real and imaginary parts a column each"

Locate = Callable[[int], str]  # turns the number of a row into its place in the file, such as "line 4"


def is_number(cell: str) -> bool:
    """Return whether a cell reads as a number, a truth value or a missing value."""
    cell = cell.strip()
    if cell in MISSING or cell in TRUTH:
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python accepts 1_000, tables do not


def default_names(count: int) -> tuple[str, ...]:
    """Return the names of unnamed columns: ``x0, x1, ...``."""
    return tuple(f"x{index}" for index in range(count))


def row_place(row: int) -> str:
    """Return the 1-based place of a row in words."""
    return f"row {row + 1}"


def check_cells(column: pd.Series, label: str) -> None:
    """Check that all cells of a column are single numbers, truth values or names; ``label`` begins the error."""
    fault = _type_fault(column.dtype) or _cell_fault(column)
    if fault is not None:
        raise ValueError(f"{label} holds {fault}")


def _type_fault(dtype: Any) -> str | None:
    if isinstance(dtype, pd.CategoricalDtype):
        return _type_fault(dtype.categories.dtype) or _cell_fault(dtype.categories.to_series())
    if isinstance(dtype, pd.ArrowDtype):
        arrow = dtype.pyarrow_dtype
        return _LISTS if pyarrow.types.is_nested(arrow) else _DATES if pyarrow.types.is_temporal(arrow) else None
    kind = getattr(dtype, "kind", "O")
    if kind in "mM" or isinstance(dtype, pd.PeriodDtype):
        return _DATES
    return _COMPLEX if kind == "c" else None


def _cell_fault(column: pd.Series) -> str | None:
    if column.dtype != object:
        return None
    types = {type(cell) for cell in column} - {type(pd.NaT)}
    if any(issubclass(kind, _TIME_TYPES) for kind in types):
        return _DATES
    if any(getattr(kind, "__hash__", None) is None for kind in types):
        return _LISTS
    return _COMPLEX if any(issubclass(kind, complex | np.complexfloating) for kind in types) else None


def typed_column(column: pd.Series, like: pd.Series | None, path: Path, locate: Locate) -> pd.Series:
    """Convert a column, indexed by the numbers of its rows in the file, to numbers, truth values or names.

    The type is that of the column ``like`` or, without it, inferred from the cells. Cells that no table may hold,
    infinite numbers, and a few cells that are not numbers among many that are, are errors.
    """
    check_cells(column, f"{path}: column {column.name!r}")
    is_bool = pd.api.types.is_bool_dtype(column.dtype)
    if _is_truth(column if like is None else like):
        return column if is_bool else _words_as_truth(column)
    if isinstance(column.dtype, pd.CategoricalDtype) if like is None else holds_names(like):
        return _as_names(column)
    if is_bool:
        return column
    if pd.api.types.is_numeric_dtype(column.dtype):
        numbers = column.astype(np.float64) if column.isna().any() else column
        infinite = np.isinf(numbers.to_numpy(dtype=float, na_value=np.nan))
        if infinite.any():
            row = int(infinite.argmax())
            cell = f"{locate(column.index[row])}, column {column.name!r}"
            raise ValueError(f"{path}: {cell}: expected a finite number, got {numbers.iloc[row]}")
        return numbers
    if like is None and has_leading_zeros(column):
        return _as_names(column)
    numbers = pd.to_numeric(column, errors="coerce")
    present, wrong = column.notna(), numbers.isna() & column.notna()
    if like is not None or (present.any() and wrong.sum() <= (1.0 - _MIN_NUMBER_FRACTION) * present.sum()):
        if wrong.any():
            raise _not_a_number(column, wrong, path, locate)
        return numbers
    if _are_dates(column):
        raise ValueError(f"{path}: column {column.name!r} holds {_DATES}")
    if wrong.any() and _are_mostly_numbers(column):
        raise _not_a_number(column, wrong, path, locate)
    return column.astype(object)


def number_array(frame: pd.DataFrame, path: Path, locate: Locate) -> np.ndarray:
    """Return columns, indexed by the numbers of the rows, as an array ``(n, D)`` with NaN for missing values.

    Text is not a number, even if it looks like one. The array is float32 if all columns have half or single precision,
    else float64.
    """
    if not all(_is_real(dtype) for dtype in frame.dtypes):
        frame = pd.DataFrame({name: _numeric_column(frame[name], path, locate) for name in frame.columns})
    single = len(frame.columns) > 0 and all(str(dtype).lower() in ("float16", "float32") for dtype in frame.dtypes)
    return frame.to_numpy(dtype=np.float32 if single else np.float64, na_value=np.nan)  # (n, D)


def _is_real(dtype: Any) -> bool:
    return pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype)


def _numeric_column(column: pd.Series, path: Path, locate: Locate) -> pd.Series:
    if _is_real(column.dtype):
        return column
    check_cells(column, f"{path}: column {column.name!r}")
    cells = _as_names(column)
    numbers = pd.to_numeric(cells, errors="coerce")
    wrong = cells.notna() & numbers.isna()
    if not wrong.any():
        wrong = cells.map(lambda cell: isinstance(cell, str))  # text that looks like numbers
    if wrong.any():
        raise _not_a_number(cells, wrong, path, locate)
    return numbers


def _not_a_number(column: pd.Series, wrong: pd.Series, path: Path, locate: Locate) -> ValueError:
    row = int(wrong.to_numpy().argmax())
    cell = str(column.iloc[row])[:40]
    hint = " (write numbers without commas)" if "," in cell else " (text)" if is_number(cell) else ""
    place = f"{locate(column.index[row])}, column {column.name!r}"
    return ValueError(f"{path}: {place}: expected a number, got {cell!r}{hint}")


def holds_names(column: pd.Series) -> bool:
    """Return whether a column that :func:`typed_column` made holds names."""
    return not pd.api.types.is_numeric_dtype(column.dtype)


def _as_names(column: pd.Series) -> pd.Series:
    """Convert a column to names. Categories become text, as they would be in a CSV file."""
    names = column.astype(object)
    return names.map(str, na_action="ignore") if isinstance(column.dtype, pd.CategoricalDtype) else names


def _is_truth(column: pd.Series) -> bool:
    if pd.api.types.is_bool_dtype(column.dtype):
        return True
    present = column.dropna()
    return column.dtype == object and len(present) > 0 and all(isinstance(cell, bool | np.bool_) for cell in present)


def _words_as_truth(column: pd.Series) -> pd.Series:
    """Replace the words for truth values by truth values, and nothing else."""
    truth = {word: word.lower() == "true" for word in TRUTH}
    return column.astype(object).map(lambda cell: truth.get(cell, cell) if isinstance(cell, str) else cell)


def has_leading_zeros(column: pd.Series) -> bool:
    """Return whether a text column holds numeric codes, some with leading zeros, that repeat as names do."""
    texts = pd.Series(column.dropna().unique(), dtype=object)
    if 2 * len(texts) > column.notna().sum() or not all(isinstance(text, str) for text in texts):
        return False
    return bool(texts.str.fullmatch(LEADING_ZERO).any()) and bool(pd.to_numeric(texts, errors="coerce").notna().all())


def _are_dates(column: pd.Series) -> bool:
    """Return whether nearly all distinct texts are dates, such as 2026-11-25, 25.11.2026 or 11/25/26."""
    texts = pd.Series(column.dropna().unique(), dtype=object).astype(str).str.strip()
    return len(texts) > 1 and bool(texts.str.fullmatch(_DATE).mean() >= _MIN_DATE_FRACTION)


def _are_mostly_numbers(column: pd.Series) -> bool:
    """Return whether most distinct texts are numbers, so that the others are mistakes and not names."""
    texts = pd.Series(column.dropna().unique()).astype(str)
    numbers = pd.to_numeric(texts.str.replace(",", ""), errors="coerce").notna().sum()
    return bool(numbers > max(_MAX_NUMERIC_CODES, 0.5 * len(texts)))
