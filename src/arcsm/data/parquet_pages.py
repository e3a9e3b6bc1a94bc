"""The footer and the page headers of a Parquet file, which tell what the pages unpack to.

pyarrow describes a column only if its statistics are in order; else it ends the process.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

_HEADER_BYTES = (1 << 12, 1 << 16, 1 << 20, 1 << 24)  # read in turn until a header is complete
_MAX_DEPTH = 12
#: Numbers of fields in parquet.thrift: of a file, a row group, a column, its metadata, a page and the data in it.
_ROW_GROUPS, _COLUMNS, _NUM_ROWS, _METADATA = 4, 1, 3, 3
_ENCODINGS, _COLUMN_VALUES, _COLUMN_SIZE, _DATA_OFFSET, _DICTIONARY_OFFSET = 2, 5, 7, 9, 11
_UNCOMPRESSED_SIZE, _COMPRESSED_SIZE, _DATA_HEADERS, _NUM_VALUES = 2, 3, (5, 8), 1
_TRUE, _FALSE, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = 1, 2, 3, (4, 5, 6), 7, 8, (9, 10), 12


@dataclass(frozen=True)
class Chunk:
    """One column in one row group, as the footer describes it.

    Attributes:
        values: Number of values, missing ones and those of lists included.
        start, size: Place of the pages in the file, in bytes.
        encodings: Numbers of the encodings.
    """

    values: int
    start: int
    size: int
    encodings: tuple[int, ...]


@dataclass(frozen=True)
class RowGroup:
    """A number of rows, and their columns in the order of the schema."""

    rows: int
    columns: tuple[Chunk, ...]


@dataclass(frozen=True)
class Pages:
    """What the pages of one column in one row group hold.

    Attributes:
        values: Number of values, as in :class:`Chunk`, by the pages.
        largest: Bytes of the largest page after decompression.
    """

    values: int
    largest: int


def read_row_groups(file: IO[bytes]) -> list[RowGroup]:
    """Return the row groups of a file, by its footer.

    Raises:
        ValueError, KeyError, IndexError: If the footer is damaged.
    """
    file.seek(-8, os.SEEK_END)
    size = int.from_bytes(file.read(4), "little")
    file.seek(-8 - size, os.SEEK_END)
    footer = _Reader(file.read(size)).struct()
    return [
        RowGroup(group[_NUM_ROWS], tuple(_chunk(column[_METADATA]) for column in group[_COLUMNS]))
        for group in footer[_ROW_GROUPS]
    ]


def _chunk(column: dict[int, Any]) -> Chunk:
    start, dictionary = column[_DATA_OFFSET], column.get(_DICTIONARY_OFFSET) or 0
    first = dictionary if 0 < dictionary < start else start
    return Chunk(column[_COLUMN_VALUES], first, column[_COLUMN_SIZE], tuple(column[_ENCODINGS]))


def read_pages(file: IO[bytes], chunk: Chunk) -> Pages:
    """Walk the headers of a column's pages, as far as Arrow reads them.

    Raises:
        ValueError, KeyError, TypeError: If a header is damaged.
    """
    at, values, largest = chunk.start, 0, 0
    while at < chunk.start + chunk.size and values < chunk.values:
        header, size = _page_header(file, at)
        data: dict[int, Any] = next((header[field] for field in _DATA_HEADERS if field in header), {})
        count, uncompressed, compressed = data.get(_NUM_VALUES, 0), header[_UNCOMPRESSED_SIZE], header[_COMPRESSED_SIZE]
        if min(count, uncompressed, compressed) < 0:
            raise ValueError("a page of negative size")
        at, values, largest = at + size + compressed, values + count, max(largest, uncompressed)
    return Pages(values, largest)


def _page_header(file: IO[bytes], at: int) -> tuple[dict[int, Any], int]:
    """Return the fields of the header at an offset, by number, and its size in bytes."""
    for size in _HEADER_BYTES:
        file.seek(at)
        content = file.read(size)
        reader = _Reader(content)
        try:
            return reader.struct(), reader.at
        except IndexError:  # cut off
            if len(content) < size:
                break
    raise ValueError("a page without a complete header")


class _Reader:
    """Reads a struct in Thrift's compact protocol; texts and numbers with a fraction are skipped."""

    def __init__(self, content: bytes) -> None:
        self._content, self.at = content, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Return the fields of a struct, by number."""
        fields: dict[int, Any] = {}
        number = 0
        while (start := self._byte()) & 0x0F:
            number = number + (start >> 4) if start >> 4 else self._integer()
            fields[number] = self._value(start & 0x0F, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("a header that is nested too deeply")
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind in _INTEGERS:
            return self._integer()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in _LISTS:
            return self._list(depth)
        sizes = {_BYTE: 1, _DOUBLE: 8}
        if kind not in (*sizes, _BINARY):
            raise ValueError(f"a field of the unknown type {kind}")
        self._skip(self._varint() if kind == _BINARY else sizes[kind])
        return None

    def _list(self, depth: int) -> list[Any]:
        start = self._byte()
        count = start >> 4 if start >> 4 < 15 else self._varint()
        if start & 0x0F in (_TRUE, _FALSE):
            self._skip(count)
            return []
        return [self._value(start & 0x0F, depth + 1) for _ in range(count)]

    def _skip(self, count: int) -> None:
        if self.at + count > len(self._content):
            raise IndexError
        self.at += count

    def _byte(self) -> int:
        self.at += 1
        return self._content[self.at - 1]

    def _varint(self) -> int:
        return sum(bits << shift for shift, bits in self._groups())

    def _groups(self) -> Iterator[tuple[int, int]]:
        """Yield the groups of seven bits of a number, each with its place; of ten at most."""
        for shift in range(0, 70, 7):
            byte = self._byte()
            yield shift, byte & 0x7F
            if not byte & 0x80:
                return

    def _integer(self) -> int:
        """Return a signed number, whose sign is its last bit."""
        number = self._varint()
        return (number >> 1) ^ -(number & 1)
