"""Data frames of other libraries, such as polars and pyarrow, to pandas frames and back, and checks of rows."""

from collections.abc import Iterable
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import pyarrow

from arcsm.data.checks import check_unique
from arcsm.data.column_types import TIME_TYPES

#: Arrow types whose missing values would otherwise turn them into floats or objects.
_NULLABLE = {
    pyarrow.int8(): pd.Int8Dtype(),
    pyarrow.int16(): pd.Int16Dtype(),
    pyarrow.int32(): pd.Int32Dtype(),
    pyarrow.int64(): pd.Int64Dtype(),
    pyarrow.uint8(): pd.UInt8Dtype(),
    pyarrow.uint16(): pd.UInt16Dtype(),
    pyarrow.uint32(): pd.UInt32Dtype(),
    pyarrow.uint64(): pd.UInt64Dtype(),
    pyarrow.bool_(): pd.BooleanDtype(),
}


def is_native(X: Any) -> bool:
    """Return whether rows are a data frame that is not of pandas but that narwhals knows.

    Raises:
        TypeError: If they are a lazy frame.
        ValueError: If columns have the same name.
    """
    check_unique_columns(X)
    if isinstance(X, pd.DataFrame):
        return False
    frame = nw.from_native(X, pass_through=True)
    if isinstance(frame, nw.LazyFrame):
        raise TypeError(f"X: expected rows in memory, got a lazy frame ({type(X).__name__}); collect it first")
    return isinstance(frame, nw.DataFrame)


def to_pandas(X: Any) -> Any:
    """Return a data frame of any library as one of pandas; other rows as they are."""
    if not is_native(X):
        return X
    return _signed(nw.from_native(X, eager_only=True).to_arrow()).to_pandas(types_mapper=_NULLABLE.get)


def _signed(table: pyarrow.Table) -> pyarrow.Table:
    """Give dictionaries signed indices: many versions of pyarrow convert no others to pandas."""
    types = [
        pyarrow.dictionary(pyarrow.int64(), field.type.value_type, field.type.ordered)
        if pyarrow.types.is_dictionary(field.type)
        else field.type
        for field in table.schema
    ]
    return table.cast(pyarrow.schema([field.with_type(new) for field, new in zip(table.schema, types, strict=True)]))


def to_native(frame: pd.DataFrame, like: Any, keep_types: bool = True) -> Any:
    """Return a frame of pandas in the library of ``like``.

    To ``keep_types``, columns have the types of the same columns there, except that decimals become floats.
    """
    model = nw.from_native(like, eager_only=True)
    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    converted = nw.DataFrame.from_arrow(table, backend=model.implementation)
    if keep_types:
        found = converted.schema
        types = {name: kind for name, kind in model.schema.items() if kind not in (nw.Decimal, found[name])}
        converted = converted.with_columns([nw.col(name).cast(kind) for name, kind in types.items()])
    return converted.to_native()


def check_unique_columns(rows: Any) -> None:
    """Check that the column names of a data frame of pandas or pyarrow differ; other rows have no such names."""
    if isinstance(rows, pd.DataFrame):
        check_unique(list(rows.columns), "X")
    elif isinstance(rows, pyarrow.Table | pyarrow.RecordBatch):
        check_unique(rows.schema.names, "X")


def check_holds_no_times(rows: Any) -> None:
    """Check that an array or nested list holds no dates or times, which only the columns of a data frame may hold."""
    kind = getattr(getattr(rows, "dtype", None), "kind", "O" if isinstance(rows, list | tuple) else "f")
    times: Iterable[Any] = ()
    if kind in "mM":
        times = np.ravel(rows)[:1]
    elif kind == "O":
        lines = rows if isinstance(rows, list | tuple) else np.atleast_2d(rows)
        cells = (cell for line in lines if isinstance(line, list | tuple | np.ndarray) for cell in line)
        times = (cell for cell in cells if isinstance(cell, TIME_TYPES) and str(cell) != "NaT")
    first = next(iter(times), None)
    if first is not None:
        raise ValueError(f"X: expected numbers in an array, got {str(first)!r}; give dates and times in a data frame")
