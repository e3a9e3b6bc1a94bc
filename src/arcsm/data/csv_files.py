"""Tables of numbers in CSV files."""

import csv
import gzip
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from arcsm.files import reading

MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "?")
TRUTH = ("True", "TRUE", "true", "False", "FALSE", "false")  # read as 1 and 0
_MOST_COLUMNS = 100_000


def read_csv(path: Path) -> tuple[np.ndarray, tuple[str, ...], Callable[[int], str]]:
    first = first_cells(path)
    if first is None:
        raise ValueError(f"{path}: the file is empty (blank lines only)")
    header = not all(is_number(cell) for cell in first)
    if header and next(islice(csv_rows(path), 1, None), None) is None:
        raise ValueError(f"{path}: expected at least one row of data, got a header only")
    columns = tuple(cell.strip() for cell in first) if header else default_columns(len(first))
    try:
        values = _parse_csv(path, header)
    except Exception as error:
        _check_csv_cells(path, columns, header)
        raise ValueError(f"{path}: cannot be read as a table of numbers ({str(error).splitlines()[0]})") from error
    if values.shape[1] != len(columns) or np.isnan(values).any():  # a short row reads as missing cells
        _check_csv_cells(path, columns, header)

    def place(row: int) -> str:
        line, _ = next(islice(csv_rows(path), row + header, None))
        return f"line {line}"

    return values, columns, place


def first_cells(path: Path) -> list[str] | None:
    """The cells of the first row of a CSV file that is not blank; ``None`` for a file without one.

    Raises:
        ValueError: for more of them than any table here may have.
    """
    first = next(csv_rows(path), None)
    if first is None:
        return None
    check_width(len(first[1]), path)
    return first[1]


def _parse_csv(path: Path, header: bool) -> np.ndarray:
    with _open_text(path) as file:
        if header:
            next(row for row in csv.reader(file) if not _is_blank(row))  # pandas goes on after the header
        frame = pd.read_csv(
            file, header=None, dtype=np.float64, keep_default_na=False, na_values=MISSING, skipinitialspace=True
        )
    return frame.to_numpy()


def _check_csv_cells(path: Path, columns: tuple[str, ...], header: bool) -> None:
    """Raise for the first row of another length, or else the first cell that is not a number."""
    check_lengths(path, len(columns))
    for line, row in islice(csv_rows(path), int(header), None):
        for name, cell in zip(columns, row, strict=True):
            if not is_number(cell):
                hint = " (cells are separated by commas)" if ";" in cell or "\t" in cell else ""
                raise ValueError(f"{path}: line {line}, column {name!r}: expected a number, got {cell!r}{hint}")


def check_lengths(path: Path, columns: int) -> None:
    """All rows of a CSV file must have as many cells.

    Raises:
        ValueError: which names the first line that has not.
    """
    for line, row in csv_rows(path):
        if len(row) != columns:
            raise ValueError(f"{path}: line {line}: expected {columns} cells like the first row, got {len(row)}")


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with its 1-based line in the file."""
    with reading(path), _open_text(path) as file:
        rows = csv.reader(file)
        for row in rows:
            if not _is_blank(row):
                yield rows.line_num, row


def _open_text(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _is_blank(row: list[str]) -> bool:
    return not row or (len(row) == 1 and not row[0].strip())


def is_number(cell: str) -> bool:
    """Whether a cell reads as a number, a truth value or a missing value."""
    cell = cell.strip()
    if cell in MISSING or cell in TRUTH:
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python reads 1_000, a table does not


# --- Parquet ----------------------------------------------------------------------------------------------------------


def check_width(columns: int, path: Path) -> None:
    """Tables of very many columns are taken for a mistake, such as a transposed one.

    Raises:
        ValueError: for those.
    """
    if columns > _MOST_COLUMNS:
        raise ValueError(f"{path}: expected at most {_MOST_COLUMNS:,} columns, got {columns:,}; is it transposed?")


def default_columns(count: int) -> tuple[str, ...]:
    """Names of columns that have none: ``x0, x1, ...``."""
    return tuple(f"x{index}" for index in range(count))
