"""Rounding of synthetic values to the precision of the table."""

from collections.abc import Collection
from decimal import Decimal

import numpy as np
import pandas as pd

from arcsm.estimators.column_types import Grid
from arcsm.estimators.continua import Continuous
from arcsm.estimators.encoder import Columns

_MAX_DECIMALS = 12  # a column with more is not rounded
_MAX_INSPECTED = 10_000  # different values of a column


def round_like(
    table: pd.DataFrame, columns: Columns, rows: pd.DataFrame, fixed: Collection[str] = (), as_text: bool = False
) -> pd.DataFrame:
    """Round synthetic ``rows`` to as many decimals as the values of the training ``table`` have.

    Columns ``fixed`` are not rounded. Columns of whole numbers become integers if the rows will be written as text.
    """
    rows = rows.copy()
    for name, kind in zip(table.columns, columns.kinds, strict=True):
        if not pd.api.types.is_float_dtype(rows[name].dtype) or not isinstance(kind, Continuous | Grid):
            continue
        decimals = 0 if isinstance(kind, Grid) and kind.whole else count_decimals(table[name])
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
