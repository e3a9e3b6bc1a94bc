"""Parquet files: read in batches, written in parts, and with the types of another file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.compute
from pyarrow import parquet

from arcsm._runtime.files import FilePath, reading


def parquet_parts(path: Path, rows: int | None, **options: Any) -> Iterator[pd.DataFrame]:
    """Yield the rows of a Parquet file, at most ``rows`` at a time or, with ``None``, at once."""
    if rows is None:
        with reading(path):
            frame = pd.read_parquet(path)
        yield frame
        return
    with reading(path):
        batches = parquet.ParquetFile(path).iter_batches(batch_size=rows)
    while True:
        with reading(path):
            batch = next(batches, None)
        if batch is None:
            return
        if len(batch):
            yield batch.to_pandas(**options)


@contextmanager
def parquet_writer(path: Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Provide a function that appends a frame to a Parquet file. The first frame decides the column types."""
    writer: Any = None

    def write(frame: pd.DataFrame) -> None:
        nonlocal writer
        table = pyarrow.Table.from_pandas(frame, None if writer is None else writer.schema, preserve_index=False)
        table = table.replace_schema_metadata(None)  # keeps Arrow's types, not pandas' ways of holding them
        if writer is None:
            writer = parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


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
