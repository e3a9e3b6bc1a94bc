"""Columns that say nothing about a row: labels such as ids, and free text."""

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from arcsm.data.column_types import ColumnType

_ID_NAME = re.compile(
    r"(.*[\W_])?(id|ids|idx|index|key|uuid|guid|rowid|row|rows|rownames|row_?(name|number|no|nr)|no|nr|number|#|serial)",
    re.IGNORECASE,
)
_CAMEL_ID = re.compile(r".*[a-z0-9](Id|ID|Idx|Key|No)")
_TIME_NAME = re.compile(
    r".*(year|yr|date|time|day|week|month|quarter|hour|minute|second|age|jahr|ann[ée]e|año).*", re.IGNORECASE
)
_MIN_ROWS = 20  # in a smaller table, whole numbers may all differ by chance
_MIN_NAME_ROWS = 50  # in a smaller table, names may all differ
_MIN_DISTINCT_NAMES = 0.5  # of the names of a column
_MAX_SPREAD = 1.2  # highest minus lowest of numbers that count rows, as a multiple of their number
_MIN_EQUAL_PAIRS = 5.0  # that are expected of as many random numbers; here there are none
_FREE_TEXT_LENGTH = 25  # characters, on average


@dataclass(frozen=True)
class SetAside:
    """Why a column is set aside, not modelled.

    Attributes:
        text: The reason in words.
        is_label: Whether the column tells the rows apart.
    """

    text: str
    is_label: bool

    def __str__(self) -> str:
        return self.text


def reason_to_set_aside(column: pd.Series, kind: ColumnType, total: int | None = None) -> SetAside | None:
    """Return why a typed column says nothing about a row, or ``None``.

    The rows may be random ones of ``total`` rows.

    Whole numbers are labels if they all differ and either run through nearly all numbers from the lowest to the highest
    or have a name such as ``id``. Names of time, such as ``year``, are an exception. Names are labels or free text if
    more than half of them differ.
    """
    present = column.dropna()
    count, distinct = len(present), present.nunique()
    if kind.kind == "name":
        named = is_id_name(str(column.name)) and count >= _MIN_ROWS and distinct == count
        if not named and not mostly_differ(column):
            return None
        if total is not None and _equal_pairs(present) > 0.5 * count * (count - 1) / total:
            return None  # on average, a name is in two rows of all or in more
        if present.astype(str).str.len().mean() > _FREE_TEXT_LENGTH:
            return SetAside("free text", False)
        text = "a different name in every row" if distinct == count else f"{distinct:,} different names"
        return SetAside(text, distinct == count)
    if kind.kind != "number" or count < _MIN_ROWS or distinct < count or count < len(column):
        return None
    counts = _counts_rows(present, str(column.name), total or count)
    return SetAside("a different whole number in every row", True) if counts else None


def mostly_differ(names: pd.Series) -> bool:
    """Return whether more than half of the names of a column of at least 50 rows differ."""
    return len(names) >= _MIN_NAME_ROWS and bool(names.nunique() > max(1, _MIN_DISTINCT_NAMES * names.count()))


def label_name(taken: Collection[str], level: int | None = None) -> str:
    """Return a name for row labels without one that no column has: ``index``, or ``level_0`` for a level of several.

    Example:
        >>> label_name(["a"]), label_name(["index"]), label_name(["a"], level=1)
        ('index', 'level_0', 'level_1')
    """
    if level is None and "index" not in taken:
        return "index"
    start = level or 0
    return next(name for number in range(len(taken) + 1) if (name := f"level_{start + number}") not in taken)


def is_id_name(name: str) -> bool:
    """Return whether a column has a name such as ``id``, ``customer_id`` or ``PassengerId``."""
    return bool(_ID_NAME.fullmatch(name.strip()) or _CAMEL_ID.fullmatch(name.strip()))


def _equal_pairs(names: pd.Series) -> float:
    counts = names.value_counts().to_numpy(dtype=float)
    return float((0.5 * counts * (counts - 1.0)).sum())


def _counts_rows(numbers: pd.Series, name: str, total: int) -> bool:
    """Return whether different whole numbers tell ``total`` rows apart; a part of these may differ by chance."""
    values = numbers.to_numpy(dtype=float)
    if not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        return False
    if is_id_name(name):
        return True
    spread, pairs = float(values.max() - values.min()) + 1.0, 0.5 * len(values) * (len(values) - 1)
    return not _TIME_NAME.fullmatch(name) and spread <= _MAX_SPREAD * total and pairs >= _MIN_EQUAL_PAIRS * spread
