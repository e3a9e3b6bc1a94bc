"""What CSV files unpack to, measured before they are read."""

import gzip
from pathlib import Path

from arcsm._runtime.files import reading
from arcsm._runtime.memory import check_ratio

_LONGEST_LINE = 1 << 26  # bytes; 100,000 columns of 600 characters
_CHUNK = 1 << 20
CELL_BYTES = 16  # of a cell that pandas reads: a number, and where its text begins


def unpacked_bytes(path: Path, separator: str, source: str) -> int:
    """Return about how much memory all rows of a CSV file take, measured a megabyte at a time.

    Arguments:
        path: The file, which is unpacked if its name ends in ``.gz``.
        separator: What is between the cells.
        source: The name of the file in messages.

    Raises:
        ValueError: If a line is longer than 64 MiB, or if the file unpacks to more than 1 GiB and to more than a
            thousand times its size.
    """
    compressed, size, cells, line = path.stat().st_size, 0, 0, 0
    is_gzipped, mark = path.suffix.lower() == ".gz", separator.encode()
    with gzip.open(path) if is_gzipped else path.open("rb") as file:
        while True:
            with reading(source, "a CSV file"):
                chunk = file.read(_CHUNK)
            if not chunk:
                return size + CELL_BYTES * cells
            size += len(chunk)
            cells += chunk.count(mark) + chunk.count(b"\n") + chunk.count(b"\r") - chunk.count(b"\r\n")
            last = max(chunk.rfind(b"\n"), chunk.rfind(b"\r"))
            line = line + len(chunk) if last < 0 else len(chunk) - last - 1
            if line > _LONGEST_LINE:
                raise ValueError(f"{source}: expected lines of at most 64 MiB, got a longer one; is it a table?")
            if is_gzipped:
                check_ratio(size, compressed, source)
