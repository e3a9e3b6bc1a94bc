"""Types of table columns: numbers, truth values, names and times. Conversion to them, and cells no table may hold."""

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import pyarrow

from arcsm.data.number_formats import NumberFormat, count_units, has_scale
from arcsm.data.time_formats import TimeFormat, are_times_in_several_forms
from arcsm.stored_values import stored

MISSING = (
    "", "NA", "N/A", "n/a", "#N/A", "#N/A N/A", "#NA", "<NA>", "NULL", "null", "None", "?",
    "NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN",
)  # fmt: skip
TRUTH = ("True", "TRUE", "true", "False", "FALSE", "false")  # read as 1 and 0

TIME_TYPES = (datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64, pd.Period)

_LISTS = "lists, not single values"
_COMPLEX = "complex numbers; give their real and imaginary parts a column each"
_TIMES = "dates or times, where numbers are needed"

_MIN_NUMBERS = 0.9  # share of the cells of a column of text that are numbers, for the others to look like errors

Locate = Callable[[int], str]  # turns the number of a row into its place in the file, such as "row 3 (line 4)"


@stored
@dataclass(frozen=True)
class ColumnType:
    """The type of a column.

    Attributes:
        kind: What the cells are.
        format: How they are written, if they are text that is not plainly a number or a name.
        unit: The unit of numbers, an empty string if they have none, ``None`` if it is unknown.
        digits: How many digits the longest number has, if all are whole; 0 if some are not, or if it is unknown.
    """

    kind: Literal["number", "truth", "name", "time"]
    format: NumberFormat | TimeFormat | None = None
    unit: str | None = None
    digits: int = 0

    @classmethod
    def of(cls, column: pd.Series) -> Self:
        """Return the type of a column that :func:`typed_column` made."""
        if is_truth(column):
            return cls("truth")
        return cls("time" if is_time(column) else "number" if holds_numbers(column.dtype) else "name")


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
    """Check that all cells of a column are numbers, truth values, names or times; ``label`` begins the error."""
    fault = _type_fault(column.dtype) or _cell_fault(column)
    if fault is not None:
        raise ValueError(f"{label} holds {fault}")


def _type_fault(dtype: Any) -> str | None:
    if isinstance(dtype, pd.CategoricalDtype):
        return _type_fault(dtype.categories.dtype) or _cell_fault(dtype.categories.to_series())
    if isinstance(dtype, pd.ArrowDtype):
        return _LISTS if pyarrow.types.is_nested(dtype.pyarrow_dtype) else None
    return _COMPLEX if getattr(dtype, "kind", "O") == "c" else None


def _cell_fault(column: pd.Series) -> str | None:
    if column.dtype != object:
        return None
    types = {type(cell) for cell in column} - {type(pd.NaT)}
    if any(getattr(kind, "__hash__", None) is None for kind in types):
        return _LISTS
    return _COMPLEX if any(issubclass(kind, complex | np.complexfloating) for kind in types) else None


def stray_text(column: pd.Series) -> str | None:
    """Return the first text in a column of objects or text that holds numbers otherwise, and its row, in words."""
    if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_bool_dtype(column.dtype):
        return None
    present = column.dropna()
    is_number = pd.to_numeric(present.astype(str), errors="coerce").notna()
    if not _MIN_NUMBERS <= float(is_number.mean()) < 1.0:
        return None
    place = int(np.flatnonzero(~is_number)[0])
    return f"such as {str(present.iloc[place])!r:.60} in row {present.index[place]!r}"


def has_time_type(dtype: Any) -> bool:
    """Return whether a dtype holds dates, times, durations or periods."""
    if isinstance(dtype, pd.ArrowDtype):
        return bool(pyarrow.types.is_temporal(dtype.pyarrow_dtype))
    return isinstance(dtype, pd.PeriodDtype) or getattr(dtype, "kind", "O") in "mM"


def is_time(column: pd.Series) -> bool:
    """Return whether a column holds dates, times, durations or periods, in a dtype of their own or as objects."""
    if column.dtype != object:
        return has_time_type(column.dtype)
    types = {type(cell) for cell in column.dropna()}
    return bool(types) and all(issubclass(kind, TIME_TYPES) for kind in types)


def typed_column(column: pd.Series, kind: ColumnType, locate: Locate, decimal: str = ".") -> pd.Series:
    """Convert a column, indexed by the numbers of its rows in the file, to a type.

    Text that does not have the format of the type may have another one.

    Raises:
        ValueError: If cells are not of the type, infinite, or of a kind that no table may hold. The message begins with
            the place of the cell.
    """
    check_cells(column, f"column {column.name!r}")
    if kind.kind == "truth":
        return column if pd.api.types.is_bool_dtype(column.dtype) else _words_as_truth(column)
    if kind.kind == "name":
        return _as_names(column)
    if kind.kind == "time":
        return _as_times(column, kind, locate, decimal)
    if pd.api.types.is_bool_dtype(column.dtype):
        return column
    if not holds_numbers(column.dtype):
        return _as_numbers(column, kind, locate, decimal)
    numbers = column.astype(np.float64) if column.isna().any() else column
    infinite = np.isinf(numbers.to_numpy(dtype=float, na_value=np.nan))
    if infinite.any():
        row = int(infinite.argmax())
        cell = f"{locate(column.index[row])}, column {column.name!r}"
        raise ValueError(f"{cell}: expected a finite number, got {numbers.iloc[row]}")
    return numbers


def _as_numbers(column: pd.Series, kind: ColumnType, locate: Locate, decimal: str) -> pd.Series:
    """Convert text to numbers: plain ones, in the format of the type, or in the format that the cells have."""
    for form in (kind.format, None, NumberFormat.infer):
        if callable(form):
            form = form(column, decimal)
        if isinstance(form, TimeFormat) or not _has_unit(form, kind.unit):
            continue
        numbers = plain_numbers(column, decimal) if form is None else form.parse(column)
        wrong = column.notna() & numbers.isna()
        if not wrong.any():
            return numbers
    number_format = kind.format if isinstance(kind.format, NumberFormat) else None
    best = pd.to_numeric(column, errors="coerce") if number_format is None else number_format.parse(column)
    like = "" if number_format is None else f" such as {number_format.example!r}"
    raise _not_a_number(column, column.notna() & best.isna(), locate, like, kind)


def _has_unit(form: NumberFormat | None, unit: str | None) -> bool:
    """Return whether numbers of a format have a unit; any unit will do for ``None``, and none for a currency."""
    own = "" if form is None else form.unit
    return unit is None or own == unit or (not own and not has_scale(unit))


def plain_numbers(column: pd.Series, decimal: str) -> pd.Series:
    """Return the numbers of cells without any format, NaN for others, such as a decimal point in a file of commas."""
    if decimal == ",":
        column = column.mask(column.astype(str).str.contains(".", regex=False))
    return pd.to_numeric(column, errors="coerce")


def _as_times(column: pd.Series, kind: ColumnType, locate: Locate, decimal: str) -> pd.Series:
    if is_time(column):
        return column
    if holds_numbers(column.dtype):  # such as 20201231
        column = column.map("{:.0f}".format, na_action="ignore").astype(object)
    form = kind.format if isinstance(kind.format, TimeFormat) else None
    times = None if form is None else form.parse(column)
    if times is None or bool((times.isna() & column.notna()).any()):
        form = form or TimeFormat.infer(column, day_first=decimal == ",")
        times = pd.Series(pd.NaT, index=column.index) if form is None else form.parse(column)
    wrong = times.isna() & column.notna()
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        like = "a date or time" if form is None else f"{'a time' if form.is_clock else 'a date'} such as {form.example}"
        place = f"{locate(column.index[row])}, column {column.name!r}"
        several = "write all dates and times in one form; " * are_times_in_several_forms(column)
        hint = f"{several}if they are names: --categorical '{column.name}'"
        raise ValueError(f"{place}: expected {like}, got {str(column.iloc[row])[:40]!r} ({hint})")
    return times


def number_array(frame: pd.DataFrame, path: object, locate: Locate) -> np.ndarray:
    """Return columns, indexed by the numbers of the rows, as an array ``(n, D)`` with NaN for missing values.

    Text is not a number, even if it looks like one. The array is float32 if all columns have half or single precision,
    else float64.

    Raises:
        ValueError: If columns hold anything else; the message names them all.
    """
    if not all(holds_numbers(dtype) for dtype in frame.dtypes):
        frame = collect_columns(frame, lambda column: _numeric_column(column, locate), path)
    single = len(frame.columns) > 0 and all(str(dtype).lower() in ("float16", "float32") for dtype in frame.dtypes)
    return frame.to_numpy(dtype=np.float32 if single else np.float64, na_value=np.nan)  # (n, D)


def collect_columns(frame: pd.DataFrame, convert: Callable[[pd.Series], pd.Series], path: object) -> pd.DataFrame:
    """Convert each column; raise one error for all columns that cannot be converted."""
    columns, faults = {}, {}
    for name in frame.columns:
        try:
            columns[name] = convert(frame[name])
        except ValueError as error:
            faults[name] = str(error)
    if len(faults) > 1:
        names = ", ".join(map(repr, faults))
        raise ValueError(f"{path}: {len(faults)} columns cannot be used ({names}): {'; '.join(faults.values())}")
    if faults:
        raise ValueError(f"{path}: {next(iter(faults.values()))}")
    return pd.DataFrame(columns, index=frame.index)


def holds_numbers(dtype: Any) -> bool:
    """Return whether a dtype holds real numbers or truth values."""
    return pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype)


def _numeric_column(column: pd.Series, locate: Locate) -> pd.Series:
    if holds_numbers(column.dtype):
        return column
    check_cells(column, f"column {column.name!r}")
    if is_time(column):
        raise ValueError(f"column {column.name!r} holds {_TIMES}")
    cells = _as_names(column)
    numbers = pd.to_numeric(cells, errors="coerce")
    wrong = cells.notna() & numbers.isna()
    if not wrong.any():
        wrong = cells.map(lambda cell: isinstance(cell, str))  # text that looks like numbers
    if wrong.any():
        raise _not_a_number(cells, wrong, locate)
    return numbers


def _not_a_number(
    column: pd.Series, wrong: pd.Series, locate: Locate, like: str = "", kind: ColumnType | None = None
) -> ValueError:
    row = int(wrong.to_numpy().argmax())
    cell = str(column.iloc[row])[:40]
    place = f"{locate(column.index[row])}, column {column.name!r}"
    return ValueError(f"{place}: expected a number{like}, got {cell!r}{_hint(column, wrong, cell, kind)}")


def _hint(column: pd.Series, wrong: pd.Series, cell: str, kind: ColumnType | None) -> str:
    """Return what to do about a wrong cell of a column of a type, or of an array without types."""
    codes = f"if the column holds codes: --categorical '{column.name}'; to leave it out: --ignore '{column.name}'"
    units = count_units(column[column.map(lambda value: isinstance(value, str))])
    unit = next(iter(count_units(column[wrong].iloc[:1])), None)
    if kind is not None and len(units) == 1 and unit is not None and kind.unit not in (None, unit):
        other = f"{_name_of(unit)} here and {_name_of(kind.unit)} in the other table"
        return f" (the units differ: {other}; write all numbers in the same unit; {codes})"
    if unit is not None and (len(units) > 1 or not is_number(cell)):
        if len(units) == 1 and len(column) > 1 and bool(wrong[column.notna()].all()):
            return f" (a number in an unknown form; write it without marks between its digits; {codes})"
        if len(units) == 1:
            return f" (a number in another form than the others; {codes})"
        counts = " and ".join(f"{count:,} with {_name_of(unit)}" for unit, count in units.items())
        return f" (the units differ: {counts}; write all numbers in the same unit; {codes})"
    if is_number(cell):
        return " (text)"
    has_digits = any(map(str.isdigit, cell))
    if kind is not None and has_digits and not any(map(str.isalpha, cell)):  # hardly a mark of missing values
        return f" (write it as a number; {codes})"
    if kind is not None:
        return f" (if it marks missing values, for a command: --na '{cell.strip()}'; {codes})"
    several = bool((column.astype(str)[wrong] == cell).sum() > 1)
    return f" (if it marks missing values, for a command: --na '{cell}')" if several and not has_digits else ""


def _name_of(unit: str | None) -> str:
    return repr(unit) if unit else "none"


def _as_names(column: pd.Series) -> pd.Series:
    """Convert a column to names. Categories become text, as they would be in a CSV file."""
    names = column.astype(object)
    return names.map(str, na_action="ignore") if isinstance(column.dtype, pd.CategoricalDtype) else names


def is_truth(column: pd.Series) -> bool:
    """Return whether a column holds truth values."""
    if pd.api.types.is_bool_dtype(column.dtype):
        return True
    present = column.dropna()
    return column.dtype == object and len(present) > 0 and all(isinstance(cell, bool | np.bool_) for cell in present)


def _words_as_truth(column: pd.Series) -> pd.Series:
    """Replace the words for truth values by truth values, and nothing else."""
    truth = {word: word.lower() == "true" for word in TRUTH}
    return column.astype(object).map(lambda cell: truth.get(cell, cell) if isinstance(cell, str) else cell)
