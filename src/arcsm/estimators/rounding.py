"""Rounding of synthetic values to the precision of the table."""

from collections.abc import Collection, Mapping
from decimal import Decimal

import numpy as np
import pandas as pd

from arcsm.estimators.column_types import Grid
from arcsm.estimators.continua import Continuous
from arcsm.estimators.encoder import Columns

_MAX_DECIMALS = 12  # a column with more is not rounded
_MAX_INSPECTED = 10_000  # different values of a column


def decimals_of(table: pd.DataFrame, columns: Columns) -> dict[str, int | None]:
    """Return the most decimals of the values of each column of numbers; ``None`` if they are too many to round to."""
    found = dict[str, int | None]()
    for name, kind in zip(table.columns, columns.kinds, strict=True):
        if pd.api.types.is_numeric_dtype(table[name].dtype) and isinstance(kind, Continuous | Grid):
            found[str(name)] = 0 if isinstance(kind, Grid) and kind.whole else count_decimals(table[name])
    return found


def round_like(
    decimals_of_columns: Mapping[str, int | None],
    rows: pd.DataFrame,
    fixed: Collection[str] = (),
    as_text: bool = False,
) -> pd.DataFrame:
    """Round synthetic ``rows`` to as many decimals as the values of the table have.

    Columns ``fixed`` are not rounded. Columns of whole numbers become integers if the rows will be written as text.
    """
    rows = rows.copy()
    for name, decimals in decimals_of_columns.items():
        if not pd.api.types.is_float_dtype(rows[name].dtype):
            continue
        if name not in fixed and decimals is not None:
            rows[name] = round_column(rows[name], decimals)
        if as_text and decimals == 0 and bool(((rows[name] % 1 == 0) & (rows[name].abs() < 2**53)).all()):
            rows[name] = rows[name].astype(np.int64)
    return rows


def round_column(values: pd.Series, decimals: int) -> pd.Series:
    """Round values in their dtype; a value too large to have so many decimals stays as it is."""
    exact = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.where(np.abs(exact) * 10.0**decimals < 2**53, np.round(exact, decimals), exact) + 0.0
    return pd.Series(rounded, index=values.index).astype(values.dtype)


def count_decimals(column: pd.Series) -> int | None:
    """Return the most decimals of any value, or ``None`` if there are more than anyone would have written."""
    distinct = np.asarray(column.dropna().unique())
    inspected = distinct[:: max(1, len(distinct) // _MAX_INSPECTED)]
    most = max((-int(Decimal(str(value)).normalize().as_tuple().exponent) for value in inspected), default=0)
    return max(0, most) if most <= _MAX_DECIMALS else None
