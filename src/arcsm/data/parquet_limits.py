"""What Parquet files unpack to, measured before they are unpacked."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.compute
from pyarrow import parquet

from arcsm._runtime.files import reading
from arcsm._runtime.memory import check_expansion
from arcsm.data.parquet_pages import Pages, RowGroup, read_pages, read_row_groups

PARQUET_KIND = "a Parquet file"
_MEASURED_ROWS = 65_536  # at a time
_UNPACKED_ROWS = 256  # at a time
_FRONT_CODING = 7  # DELTA_BYTE_ARRAY
_NUMBER_BYTES = 8
_INDEX_BYTES = 4  # of an entry of a dictionary
_LEVEL_BYTES = 4  # that tell where a value belongs in a list


def expansion_check(path: Path, rows: int | None) -> Callable[[int], None]:
    """Return a function that checks what a Parquet file unpacks to, up to a row, before that row is read.

    Numbers and lists are measured by the metadata of the file and the headers of its pages. Text is not, because a
    dictionary of one long text can stand for any number of cells; it is decoded to dictionaries and numbers of their
    entries, which stay small.

    Arguments:
        path: The file.
        rows: Rows that are unpacked at once; ``None`` for all.

    Raises:
        ValueError: If numbers, or in the function text, exceed the free memory or a thousand times the file.
    """
    compressed = path.stat().st_size
    with reading(path, PARQUET_KIND), path.open("rb") as file:
        metadata, schema = parquet.read_metadata(path), parquet.read_schema(path)
        groups = read_row_groups(file)
        size = _page_bytes(file, metadata, groups, rows)
    check_expansion(size, compressed, str(path))
    meters = [_Meter(sizes) for sizes in _text_sizes(path, metadata, schema, groups, rows or _MEASURED_ROWS)]
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


def row_count(metadata: Any) -> int:
    """Return the number of rows that may be read, by the whole file or by its parts, if these differ."""
    return max(metadata.num_rows, sum(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)))


def _page_bytes(file: IO[bytes], metadata: Any, groups: Sequence[RowGroup], rows: int | None) -> int:
    """Return the bytes of the columns of fixed width, and of all lists, in the ``rows`` that are unpacked at once.

    One page of each column, which is decompressed whole, is added. The values in lists are counted by the pages, as
    the footer of a hostile file may claim fewer.
    """
    total = row_count(metadata) if rows is None else min(rows, row_count(metadata))
    size = 0
    for place in range(metadata.num_columns):
        column = metadata.schema.column(place)
        pages = [read_pages(file, group.columns[place]) for group in groups]
        size += max((page.largest for page in pages), default=0)
        is_text = column.physical_type == "BYTE_ARRAY"
        if column.max_repetition_level:
            values = [_most_values(page, group, rows) for page, group in zip(pages, groups, strict=True)]
            most = sum(values) if rows is None else max(values, default=0)
            size += most * (_LEVEL_BYTES + (_INDEX_BYTES if is_text else max(_NUMBER_BYTES, column.length)))
        elif not is_text:
            size += total * max(_NUMBER_BYTES, column.length)
    return size


def _most_values(pages: Pages, group: RowGroup, rows: int | None) -> int:
    """Return the most values of lists that ``rows`` rows of a row group can hold; each other row has one or more."""
    return pages.values if rows is None else pages.values - max(0, group.rows - rows)


def _text_sizes(
    path: Path, metadata: Any, schema: Any, groups: Sequence[RowGroup], rows: int
) -> Iterator[Iterator[tuple[int, int]]]:
    """Yield, for the columns of text, the number of rows and the bytes of each batch.

    Text with front coding (DELTA_BYTE_ARRAY) is unpacked a few rows at a time, as it cannot be read as a dictionary.
    """
    categories = {field.name for field in schema if pyarrow.types.is_dictionary(field.type)}  # stay as they are
    text: list[str] = []
    coded: list[str] = []
    for place in range(metadata.num_columns):
        column = metadata.schema.column(place)
        if column.physical_type == "BYTE_ARRAY" and column.path.partition(".")[0] not in categories:
            is_coded = any(_FRONT_CODING in group.columns[place].encodings for group in groups)
            (coded if is_coded else text).append(column.path)
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
