"""Data frames of other libraries, such as polars and pyarrow, to pandas frames and back, and checks of rows."""

import math
from collections.abc import Iterable
from typing import Any, Self

import narwhals as nw
import numpy as np
import pandas as pd
import pyarrow
from pyarrow import compute

from arcsm.data.checks import check_unique
from arcsm.data.column_types import TIME_TYPES
from arcsm.errors import warn
from arcsm.stored_values import Entries, Reader, Writer, stored

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


_LIBRARIES = ("polars", "pyarrow", "modin", "cudf")


@stored
class FrameKind:
    """The library and the types of a data frame, in which rows come back; ``empty`` has its columns and no rows."""

    def __init__(self, empty: Any) -> None:
        self.empty = empty

    def to_entries(self, writer: Writer) -> Entries:
        frame = nw.from_native(self.empty, eager_only=True)
        schema = frame.to_arrow().schema.serialize().to_pybytes()
        return {"library": str(frame.implementation.value), "schema": writer.write(schema)}

    @classmethod
    def from_entries(cls, entries: Entries, reader: Reader) -> Self | None:
        """Return the kind of frame, or ``None`` if its library is not installed here; rows are of pandas then."""
        library = entries["library"]
        if library not in _LIBRARIES:
            raise ValueError(f"unknown library {library!r:.60}")
        schema = pyarrow.ipc.read_schema(pyarrow.py_buffer(reader.read(entries["schema"])))
        if len(set(schema.names)) < len(schema.names) or not all(map(_is_plain, schema.types)):
            raise ValueError("a frame with columns that have the same name, or types that no fit takes")
        try:
            return cls(nw.DataFrame.from_arrow(schema.empty_table(), backend=library).to_native())
        except ModuleNotFoundError:
            warn(f"fitted with frames of {library}, which is not installed here; rows are frames of pandas")
            return None


def _is_plain(kind: pyarrow.DataType) -> bool:
    """Return whether a type is of numbers, truth values, text, times or categories of these."""
    if pyarrow.types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    if pyarrow.types.is_nested(kind) or pyarrow.types.is_interval(kind) or isinstance(kind, pyarrow.ExtensionType):
        return False
    return bool(kind.num_fields == 0)


def is_native(X: Any) -> bool:
    """Return whether rows are a data frame that is not of pandas but that narwhals knows.

    Raises:
        TypeError: If they are a lazy frame or a batch of records.
        ValueError: If columns have the same name.
    """
    check_unique_columns(X)
    if isinstance(X, pd.DataFrame):
        return False
    if isinstance(X, pyarrow.RecordBatch):
        raise TypeError("X: expected a table, got a RecordBatch; give pyarrow.Table.from_batches([X])")
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

    To ``keep_types``, columns have the types of the same columns there, unless a value would change: fractions among
    integers stay floats. Decimals are rounded to their scale.
    """
    model = nw.from_native(like, eager_only=True)
    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    if keep_types:
        table = _cast(table, model.head(0).to_arrow().schema)
    converted = nw.DataFrame.from_arrow(table, backend=model.implementation)
    if keep_types and not model.implementation.is_pyarrow():  # categories have types of the library
        types = {name: kind for name, kind in model.schema.items() if kind in (nw.Categorical, nw.Enum)}
        converted = converted.with_columns([nw.col(name).cast(kind) for name, kind in types.items()])
    return converted.to_native()


def filled_native(frame: pd.DataFrame, like: Any) -> Any:
    """Return the rows ``like`` with their missing values from a frame of pandas, in their library and types.

    Known decimals keep the digits that a float lacks.
    """
    filled, known = nw.from_native(to_native(frame, like), eager_only=True), nw.from_native(like, eager_only=True)
    exact = [name for name, kind in filled.schema.items() if kind == nw.Decimal]
    if not exact:
        return filled.to_native()
    columns = [known[name].zip_with(~known[name].is_null(), filled[name]) for name in exact]
    return filled.with_columns(columns).to_native()


def _cast(table: pyarrow.Table, schema: pyarrow.Schema) -> pyarrow.Table:
    """Cast the columns of a table to the types of a schema that can hold their values."""
    for place, name in enumerate(table.column_names):
        kind = schema.field(name).type
        try:
            column = _as_decimals(table[name], kind) if pyarrow.types.is_decimal(kind) else table[name].cast(kind)
        except pyarrow.ArrowInvalid:  # a value has no place in this type
            continue
        table = table.set_column(place, name, column)
    return table


def _as_decimals(numbers: pyarrow.ChunkedArray, kind: pyarrow.DataType) -> pyarrow.ChunkedArray:
    """Return numbers as decimals, clipped to the range of the type."""
    bound = 10.0 ** (kind.precision - kind.scale)
    highest = min(bound - 10.0**-kind.scale, math.nextafter(bound, 0.0))
    floats = numbers.cast(pyarrow.float64())
    within = compute.max_element_wise(floats, -highest, skip_nulls=False)
    within = compute.min_element_wise(within, highest, skip_nulls=False)
    return within.cast(kind, safe=False)


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
