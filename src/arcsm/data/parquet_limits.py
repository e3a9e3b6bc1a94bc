"""What Parquet files unpack to, measured before they are unpacked."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
from pyarrow import parquet

from arcsm._runtime.files import reading
from arcsm._runtime.memory import check_expansion

PARQUET_KIND = "a Parquet file"
_MEASURED_ROWS = 65_536  # at a time
_UNPACKED_ROWS = 256  # at a time
_FRONT_CODING = "DELTA_BYTE_ARRAY"
_NUMBER_BYTES = 8


def expansion_check(path: Path, rows: int | None) -> Callable[[int], None]:
    """Return a function that checks what a Parquet file unpacks to, up to a row, before that row is read.

    Numbers are measured by the metadata of the file. Text is not, because a dictionary of one long text can stand for
    any number of cells; it is decoded to dictionaries and numbers of their entries, which stay small.

    Arguments:
        path: The file.
        rows: Rows that are unpacked at once; ``None`` for all.

    Raises:
        ValueError: If numbers, or in the function text, exceed the free memory or a thousand times the file.
    """
    compressed = path.stat().st_size
    with reading(path, PARQUET_KIND):
        metadata, schema = parquet.read_metadata(path), parquet.read_schema(path)
    check_expansion(_number_bytes(metadata, rows), compressed, str(path))
    meters = [_Meter(sizes) for sizes in _text_sizes(path, metadata, schema, rows or _MEASURED_ROWS)]
    total = 0

    def check(end: int) -> None:
        nonlocal total
        if rows is not None:
            total = 0
        for meter in meters:
            while meter.row < end:
                with reading(path, PARQUET_KIND):
                    total += meter.next(end)
                check_expansion(total, compressed, str(path))

    return check


class _Meter:
    """The bytes that columns unpack to, measured a batch at a time.

    Attributes:
        row: The first row that is not measured yet.
    """

    def __init__(self, sizes: Iterator[tuple[int, int]]) -> None:
        self._sizes, self.row = sizes, 0

    def next(self, end: int) -> int:
        """Return the bytes of the next batch; none in the rows before ``end`` if there is none."""
        count, size = next(self._sizes, (end - self.row, 0))
        self.row += count
        return size


def _number_bytes(metadata: Any, rows: int | None) -> int:
    """Return the bytes of the columns of fixed width, in the ``rows`` that are unpacked at once."""
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    total = metadata.num_rows if rows is None else min(rows, metadata.num_rows)
    size = 0
    for place in range(metadata.num_columns):
        column = metadata.schema.column(place)
        if column.physical_type != "BYTE_ARRAY":
            repeated = sum(group.column(place).num_values for group in groups) if rows is None else 0
            size += max(total, repeated) * max(_NUMBER_BYTES, column.length)
    return size


def _text_sizes(path: Path, metadata: Any, schema: Any, rows: int) -> Iterator[Iterator[tuple[int, int]]]:
    """Yield, for the columns of text, the number of rows and the bytes of each batch.

    Text with front coding (DELTA_BYTE_ARRAY) is unpacked a few rows at a time, as it cannot be read as a dictionary.
    """
    categories = {field.name for field in schema if pyarrow.types.is_dictionary(field.type)}  # stay as they are
    text: list[str] = []
    coded: list[str] = []
    for place in range(metadata.num_columns):
        column = metadata.schema.column(place)
        if column.physical_type == "BYTE_ARRAY" and column.path.partition(".")[0] not in categories:
            groups = (metadata.row_group(group).column(place) for group in range(metadata.num_row_groups))
            (coded if any(_FRONT_CODING in group.encodings for group in groups) else text).append(column.path)
    if text:
        yield _batch_sizes(path, text, text, rows)
    if coded:
        yield _batch_sizes(path, coded, [], min(rows, _UNPACKED_ROWS))


def _batch_sizes(path: Path, columns: list[str], as_dictionary: list[str], rows: int) -> Iterator[tuple[int, int]]:
    with parquet.ParquetFile(path, read_dictionary=as_dictionary) as file:
        for batch in file.iter_batches(batch_size=rows, columns=columns):
            yield len(batch), sum(_unpacked_bytes(column) for column in batch.columns)


def _unpacked_bytes(array: Any) -> int:
    """Return the bytes of an array after its dictionaries are replaced by their entries."""
    kind = array.type
    if pyarrow.types.is_dictionary(kind):
        lengths = pyarrow.compute.binary_length(array.dictionary)
        return int(pyarrow.compute.sum(lengths.take(array.indices).cast(pyarrow.int64())).as_py() or 0)
    if pyarrow.types.is_struct(kind):
        return sum(_unpacked_bytes(child) for child in array.flatten())
    if isinstance(array, pyarrow.ListArray | pyarrow.LargeListArray | pyarrow.FixedSizeListArray):
        return _unpacked_bytes(array.values)
    return int(array.nbytes)
