"""What the cells of a column of a frame are: numbers, truth values, names, or what no table here may hold."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow

from arcsm.data.csv_files import CODE, TRUTH

_TIMES = (datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64, pd.Period)
_DATE = r"(\d{4}([-/.])\d{1,2}\2\d{1,2}|\d{1,2}([-/.])\d{1,2}\3(\d{4}|\d{2}))([ T]\d{1,2}:\d{2}.*)?"
_NEARLY_ALL = 0.9
_MANY = 20  # different numbers: fewer may be codes that stand for names


def check_cells(column: pd.Series, what: str) -> None:
    """Cells must be single numbers, truth values or names.

    Arguments:
        column: The column.
        what: Begins the message.

    Raises:
        ValueError: for dates and times, lists and the like, and complex numbers.
    """
    wrong = _of_type(column.dtype) or _of_cells(column)
    if wrong is not None:
        raise ValueError(f"{what} holds {wrong}")


def _of_type(dtype: Any) -> str | None:
    """What is wrong with a type, if it says so."""
    if isinstance(dtype, pd.CategoricalDtype):
        return _of_type(dtype.categories.dtype) or _of_cells(dtype.categories.to_series())
    if isinstance(dtype, pd.ArrowDtype):
        arrow = dtype.pyarrow_dtype
        return _LISTS if pyarrow.types.is_nested(arrow) else DATES if pyarrow.types.is_temporal(arrow) else None
    kind = getattr(dtype, "kind", "O")
    if kind in "mM" or isinstance(dtype, pd.PeriodDtype):
        return DATES
    return _COMPLEX if kind == "c" else None


def _of_cells(column: pd.Series) -> str | None:
    """What is wrong with a column of objects, by the types of its cells."""
    if column.dtype != object:
        return None
    kinds = {type(cell) for cell in column} - {type(pd.NaT)}
    if any(issubclass(kind, _TIMES) for kind in kinds):
        return DATES
    if any(getattr(kind, "__hash__", None) is None for kind in kinds):
        return _LISTS
    return _COMPLEX if any(issubclass(kind, complex | np.complexfloating) for kind in kinds) else None


DATES = "dates or times; turn them into numbers, such as days, or leave them out (for a command, --ignore)"
_LISTS = "lists, not single values; leave it out"
_COMPLEX = "complex numbers; give their real and imaginary parts a column each"


def is_of_truth(column: pd.Series) -> bool:
    """Whether a column is of truth values, some of which may be missing."""
    if pd.api.types.is_bool_dtype(column.dtype):
        return True
    known = column.dropna()
    return column.dtype == object and len(known) > 0 and all(isinstance(cell, bool | np.bool_) for cell in known)


def as_truth(column: pd.Series) -> pd.Series:
    """A column whose words for truth values are made these; all other cells stay what they are."""
    meant = {word: word.lower() == "true" for word in TRUTH}
    return column.astype(object).map(lambda cell: meant.get(cell, cell) if isinstance(cell, str) else cell)


def are_codes(column: pd.Series) -> bool:
    """Whether a column of texts has numerals with a zero before them, as postcodes do, and repeats as names must."""
    texts = pd.Series(column.dropna().unique(), dtype=object)
    if 2 * len(texts) > column.notna().sum() or not all(isinstance(text, str) for text in texts):
        return False
    coded = bool(texts.str.fullmatch(CODE).any())
    return coded and bool(pd.to_numeric(texts, errors="coerce").notna().all())


def are_dates(column: pd.Series) -> bool:
    """Whether nearly all different texts of a column are dates, such as 2026-11-25, 25.11.2026 or 11/25/26."""
    texts = pd.Series(column.dropna().unique(), dtype=object).astype(str).str.strip()
    return len(texts) > 1 and bool(texts.str.fullmatch(_DATE).mean() >= _NEARLY_ALL)


def first_spoilt_number(column: pd.Series) -> int | None:
    """The first cell that is no number in a column of names, most of which are: a mistake, and not a name.

    Where a few different numbers stand beside names, they may be codes.
    """
    names = pd.Series(column.dropna().unique()).astype(str)
    numbers = pd.to_numeric(names.str.replace(",", ""), errors="coerce").notna()
    if numbers.sum() <= max(_MANY, 0.5 * len(names)):
        return None
    wrong = column.notna() & pd.to_numeric(column, errors="coerce").isna()
    return int(np.argmax(wrong.to_numpy())) if bool(wrong.any()) else None
