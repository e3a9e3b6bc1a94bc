"""Parquet files: read in batches, written in parts, and with the types of another file."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.compute
from numpy.typing import NDArray
from pyarrow import parquet

from arcsm._runtime.files import FilePath, reading
from arcsm.data.parquet_limits import PARQUET_KIND, expansion_check, row_count
from arcsm.data.row_labels import label_name


def parquet_parts(path: Path, rows: int | None, **options: Any) -> Iterator[pd.DataFrame]:
    """Yield the rows of a Parquet file, at most ``rows`` at a time or, with ``None``, at once."""
    with reading(path, PARQUET_KIND):
        file = parquet.ParquetFile(path)
    count, last = row_count(file.metadata), 0
    check = expansion_check(path, rows)
    if rows is None:
        check(count)
        with reading(path, PARQUET_KIND):
            table = parquet.read_table(path)
            table.validate(full=True)  # text that is not in UTF-8, for one, would fail later
            frame = table.to_pandas(**options)
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
    """Return the names of the columns in which :func:`labelled_parts` holds an index of pandas."""
    return [name for name, _ in _index_levels(path)]


def labelled_parts(path: Path, rows: int) -> Iterator[pd.DataFrame]:
    """Yield the rows of a Parquet file in Arrow types, with the labels that pandas saved as an index as first columns.

    The index that numbers the rows from 0 is left out. Labels without a name are called ``index``, or ``level_0``,
    ``level_1``, ... if there are several.
    """
    levels, first = _index_levels(path), 0
    for frame in parquet_parts(path, rows, types_mapper=pd.ArrowDtype):
        index, last = frame.index, first + len(frame)
        frame = frame.reset_index(drop=True)
        for place, (name, numbers) in enumerate(levels):
            frame.insert(place, name, index.get_level_values(place) if numbers is None else numbers[first:last])
        yield frame
        first = last


def read_index(path: Path) -> pd.Index:
    """Return the index that pandas saved in a Parquet file, with all its labels."""
    with reading(path, PARQUET_KIND):
        file = parquet.read_metadata(path)
        stored = (file.schema.to_arrow_schema().pandas_metadata or {}).get("index_columns", [])
        level = stored[0] if len(stored) == 1 else None
        if isinstance(level, dict):  # pandas 2 reads it as empty if no column is read
            numbers = range(level["start"], level["stop"], level["step"])
            if len(numbers) == file.num_rows:
                return pd.Index(list(numbers), name=level["name"])
        index = pd.read_parquet(path, columns=[]).index if stored else pd.RangeIndex(file.num_rows)
    return index if not isinstance(index, pd.RangeIndex) else pd.Index(list(index), name=index.name)


def fill_categories(column: pd.Series, missing: NDArray[np.bool_], names: Sequence[str]) -> pd.Series:
    """Fill in missing values of an Arrow column of categories, which stay as they are, by their names.

    Arguments:
        column: The column, ``(n,)``.
        missing: Where it is missing, ``(n,)``.
        names: The names of the missing categories.
    """
    cells = pyarrow.array(column)
    chunks = cells.chunks if isinstance(cells, pyarrow.ChunkedArray) else [cells]
    whole = pyarrow.chunked_array(chunks, cells.type).unify_dictionaries().combine_chunks()
    places = {str(name): place for place, name in enumerate(whole.dictionary.to_pandas().astype(object))}
    indices = whole.indices.to_pandas().to_numpy(dtype=float, na_value=-1.0).astype(np.int64)
    indices[missing] = [places[name] for name in names]
    filled = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array(indices, whole.indices.type), whole.dictionary, ordered=whole.type.ordered
    )
    return pd.Series(pd.arrays.ArrowExtensionArray(filled), index=column.index)


def _index_levels(path: Path) -> list[tuple[str, range | None]]:
    """Return the name of each level of an index, and its numbers if the file holds only their range."""
    with reading(path, PARQUET_KIND):
        file = parquet.read_metadata(path)
        schema = file.schema.to_arrow_schema()
        metadata = schema.pandas_metadata or {}
        names = {column["field_name"]: column["name"] for column in metadata.get("columns", ())}
        stored = [level for level in metadata.get("index_columns", ()) if isinstance(level, dict) or level in names]
        columns = [name for name in schema.names if name not in stored]
        levels: list[tuple[Any, range | None]] = []
        for level in stored:
            if isinstance(level, str):
                levels.append((names[level], None))
                continue
            numbers = range(level["start"], level["stop"], level["step"])
            counts_rows = level["name"] is None and numbers == range(file.num_rows)
            if len(numbers) == file.num_rows and not counts_rows:
                levels.append((level["name"], numbers))
    for place, (name, stored_range) in enumerate(levels):
        free = name is not None and str(name) not in columns
        label = str(name) if free else label_name(columns, place if len(levels) > 1 else None)
        levels[place] = label, stored_range
        columns.append(label)
    return levels


@contextmanager
def parquet_writer(path: Path, like: Path | None = None) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Provide a function that appends a frame to a Parquet file. The first frame decides the column types.

    The index of a frame is saved, as pandas would, unless it is a range.
    pandas reads columns with the types that the columns of the Parquet file ``like`` have, such as ``Int64``.
    """
    writer: Any = None

    def write(frame: pd.DataFrame) -> None:
        nonlocal writer
        schema = None if writer is None else writer.schema
        table = pyarrow.Table.from_pandas(frame, schema, preserve_index=not isinstance(frame.index, pd.RangeIndex))
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
    own = schema.pandas_metadata or {}
    index = [name for name in own.get("index_columns", ()) if isinstance(name, str)]
    columns: dict[str, Any] = {}
    for one in described:
        for column in _pandas_columns(one, like):
            name = column["field_name"] if column["field_name"] in index else column["name"]
            same_type = name in schema.names and (
                one is schema or one.field(column["field_name"]).type == schema.field(name).type
            )
            if same_type and name not in columns and "pyarrow" not in str(column["numpy_type"]):
                columns[name] = {**column, "field_name": name}
    if not columns:
        return None
    entry = {
        "index_columns": index,
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
