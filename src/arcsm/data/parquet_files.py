"""Parquet files: read in batches, written in parts, and with the types of another file."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.compute
from pyarrow import parquet

from arcsm._runtime.files import FilePath, reading
from arcsm.data.parquet_limits import PARQUET_KIND, expansion_check, row_count


def parquet_parts(path: Path, rows: int | None, **options: Any) -> Iterator[pd.DataFrame]:
    """Yield the rows of a Parquet file, at most ``rows`` at a time or, with ``None``, at once."""
    with reading(path, PARQUET_KIND):
        file = parquet.ParquetFile(path)
    count, last = row_count(file.metadata), 0
    check = expansion_check(path, rows)
    if rows is None:
        check(count)
        with reading(path, PARQUET_KIND):
            parquet.read_table(path).validate(full=True)  # text that is not in UTF-8, for one, would fail later
            frame = pd.read_parquet(path)
        yield frame
        return
    batches = file.iter_batches(batch_size=rows)
    while True:
        check(min(last + rows, count))
        with reading(path, PARQUET_KIND):
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)
            frame = batch.to_pandas(**options)
        last += len(batch)
        if len(batch):
            yield frame


def index_names(path: Path) -> list[str]:
    """Return the names of the columns that pandas saved as an index."""
    with reading(path, PARQUET_KIND):
        names = (parquet.read_schema(path).pandas_metadata or {}).get("index_columns", ())
        return [name for name in names if isinstance(name, str) and name[:2] != "__"]


@contextmanager
def parquet_writer(path: Path, like: Path | None = None) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Provide a function that appends a frame to a Parquet file. The first frame decides the column types.

    pandas reads columns with the types that the columns of the Parquet file ``like`` have, such as ``Int64``.
    """
    writer: Any = None

    def write(frame: pd.DataFrame) -> None:
        nonlocal writer
        table = pyarrow.Table.from_pandas(frame, None if writer is None else writer.schema, preserve_index=False)
        table = table.replace_schema_metadata(_pandas_metadata(table.schema, like))
        if writer is None:
            writer = parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


def _pandas_metadata(schema: Any, like: Path | None) -> dict[str, str] | None:
    """Return the entry that tells pandas which types columns had, by the entry of another file.

    Without it, pandas reads ``Int64`` with missing values as floats. Arrow's types, in which columns may be held while
    they are copied, are not entered.
    """
    described = [schema] if like is None else [parquet.read_schema(like), schema]
    columns: dict[str, Any] = {}
    for one in described:
        for column in _pandas_columns(one, like):
            name = column["name"]
            same_type = name in schema.names and (
                one is schema or one.field(column["field_name"]).type == schema.field(name).type
            )
            if same_type and name not in columns and "pyarrow" not in str(column["numpy_type"]):
                columns[name] = {**column, "field_name": name}
    if not columns:
        return None
    entry = {
        "index_columns": [],
        "column_indexes": [],
        "columns": list(columns.values()),
        "pandas_version": pd.__version__,
    }
    return {"pandas": json.dumps(entry)}


def _pandas_columns(schema: Any, path: Path | None) -> list[dict[str, Any]]:
    """Return what pandas has noted of columns in the schema of a file; other programs may have changed it."""
    with reading(path or "schema", PARQUET_KIND):
        columns = (schema.pandas_metadata or {}).get("columns", ())
        return [column for column in columns if {"name", "field_name", "numpy_type"} <= column.keys()]


def cast_as_parquet(path: FilePath, frame: pd.DataFrame) -> pd.DataFrame:
    """Return rows in the column types of a Parquet file, as far as these can hold the values."""
    schema = parquet.read_schema(path)
    columns = {}
    for name in frame.columns:
        column = pyarrow.array(frame[name], from_pandas=True)
        target = schema.field(name).type if name in schema.names else column.type
        with suppress(pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
            column = _as_category(column, path, name) if pyarrow.types.is_dictionary(target) else column.cast(target)
        columns[name] = pd.Series(pd.arrays.ArrowExtensionArray(pyarrow.chunked_array([column])), index=frame.index)
    return pd.DataFrame(columns)


def _as_category(column: Any, path: FilePath, name: str) -> Any:
    """Encode values by the categories of a column of a Parquet file, in their order."""
    original = parquet.read_table(path, columns=[name]).column(name).unify_dictionaries()
    if not original.num_chunks:
        return column.dictionary_encode()
    categories = original.chunk(0).dictionary
    indices = pyarrow.compute.index_in(column.cast(categories.type), value_set=categories)
    return pyarrow.DictionaryArray.from_arrays(
        indices.cast(original.type.index_type), categories, ordered=original.type.ordered
    )
