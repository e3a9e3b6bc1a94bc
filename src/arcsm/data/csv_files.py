"""Tables of numbers in CSV files."""

import csv
import gzip
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from arcsm._runtime.files import reading
from arcsm.errors import SkippedWarning, warn

NAMELESS = ("", "Unnamed: 0")  # what pandas calls the column of an index without a name, and calls it when read again
_LOOKED_AT = 100  # rows that say what a first row, or a first column, is
MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "?")
TRUTH = ("True", "TRUE", "true", "False", "FALSE", "false")  # read as 1 and 0
CODE = r"0\d+"  # a numeral with a zero before it
_CODE, _MAYBE_CODE = re.compile(CODE), re.compile(rf'(^|[,"\s]){CODE}($|[,"\s])')
_MOST_COLUMNS = 100_000


def read_csv(path: Path) -> tuple[np.ndarray, tuple[str, ...], Callable[[int], str]]:
    first = first_cells(path)
    if first is None:
        raise ValueError(f"{path}: the file is empty (blank lines only)")
    header = not all(is_number(cell) for cell in first) or are_numbered_names(path, first)
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

    if header and labels_rows(path):
        values, columns = values[:, 1:], columns[1:]
        say_left_out(path)

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


def are_numbered_names(path: Path, cells: Sequence[str]) -> bool:
    """Whether a first row of different whole numbers is names: years, or the numbers that pandas gives columns.

    So it is where a column below is text, all numbers below are fractions, or, for 0, 1, 2, ..., those of a column.
    Where numbers that go up are taken for data, it is said, too.
    """
    cells = [cell.strip() for cell in cells]
    if len(cells) < 2 or len(set(cells)) < len(cells) or not all(cell.isdecimal() for cell in cells):
        return False
    below = [row for _, row in islice(csv_rows(path), 1, 1 + _LOOKED_AT) if len(row) == len(cells)]
    if below and any(all(_is_text(row[place]) for row in below) for place in range(len(cells))):
        return True
    fractional = [any(_is_fraction(row[place]) for row in below) for place in range(len(cells))]
    counted = cells == [str(place) for place in range(len(cells))]
    if all(fractional) or (counted and any(fractional)):
        warn(f"{path}: its first row was taken for names of columns ({', '.join(cells[:3])}, ...); if it is data, put "
             "a row of names above")  # fmt: skip
        return True
    if len(cells) > 2 and all(int(one) < int(next_one) for one, next_one in pairwise(cells)):
        warn(f"{path}: its first row ({', '.join(cells[:3])}, ...) was taken for data; if it is names of columns, give "
             "them letters")  # fmt: skip
    return False


def _is_text(cell: str) -> bool:
    return any(map(str.isalpha, cell)) and not is_number(cell)


def _is_fraction(cell: str) -> bool:
    try:
        return not float(cell).is_integer()
    except (ValueError, OverflowError):
        return False


def labels_rows(path: Path) -> bool:
    """Whether a file with a header begins with a column without a name that tells its rows apart, as pandas writes one.

    Its cells are then whole numbers or texts, none twice among the first.
    """
    rows = [row for _, row in islice(csv_rows(path), 1 + _LOOKED_AT)]
    if len(rows) < 2 or len(rows[0]) < 2 or rows[0][0].strip() not in NAMELESS:
        return False
    cells = [row[0].strip() for row in rows[1:]]
    return len(set(cells)) == len(cells) and not any(cell in MISSING or _is_fraction(cell) for cell in cells)


def coded_columns(path: Path) -> list[str]:
    """Columns of a CSV file with a header in which a numeral has a zero before it: codes, whose zeros count."""
    with reading(path), _open_text(path) as file:
        if not any(_MAYBE_CODE.search(line) for line in file):
            return []
    rows = csv_rows(path)
    _, names = next(rows)
    found: dict[int, None] = {}
    for _, row in rows:
        found.update((place, None) for place, cell in enumerate(row) if _CODE.fullmatch(cell.strip()))
    return [names[place].strip() for place in found if place < len(names)]


def say_left_out(path: Path) -> None:
    """Say that the column of :func:`labels_rows` is left out."""
    warn(f"{path}: its first column has no name and tells rows apart: left out", SkippedWarning)


def _parse_csv(path: Path, header: bool) -> np.ndarray:
    with _open_text(path) as file:
        if header:
            next(row for row in _reader(file) if not _is_blank(row))  # pandas goes on after the header
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
        rows = _reader(file)
        for row in rows:
            if not _is_blank(row):
                yield rows.line_num, row


def _reader(file: IO[str]) -> Any:
    return csv.reader(file, skipinitialspace=True)  # as pandas is told to read


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


# --- columns ----------------------------------------------------------------------------------------------------------


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
