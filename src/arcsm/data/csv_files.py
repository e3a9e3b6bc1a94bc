"""CSV files: cells between commas, semicolons or tabs, gzipped or not, with or without a header."""

import csv
import re
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

from arcsm._runtime.memory import check_fits
from arcsm.data.checks import check_unique, check_width
from arcsm.data.column_types import MISSING, TRUTH, default_names, is_number
from arcsm.data.csv_dialect import Dialect, decoding, find_dialect, open_text
from arcsm.data.csv_limits import CELL_BYTES, unpacked_bytes
from arcsm.data.number_formats import LEADING_ZERO
from arcsm.data.read_options import ReadOptions
from arcsm.errors import SkippedWarning, warn

_INDEX_NAMES = ("", "Unnamed: 0")  # pandas writes an unnamed index as the first, and reads it as the second
_HEAD_ROWS = 100  # rows that decide whether the first row is a header and the first column an index
_CODE = re.compile(LEADING_ZERO)
_MAYBE_CODE = re.compile(rf'(^|[,;|"\s]){LEADING_ZERO}($|[,;|"\s])')
_ROW_NAME = re.compile(r"\d+\.\d{1,3}")  # as R writes one
#: Before version 3.1 pandas rounds the last digit wrongly unless told not to; later it warns if told.
_EXACT_NUMBERS: dict[str, Any] = (
    {"float_precision": "round_trip"} if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1) else {}
)


class CSVFile:
    """A table in a CSV file.

    The first row is a header if one of its cells is text, or if its numbers can only be names; a warning names the file
    if it could be data as well. A first column without a name whose cells are all different is an index, as pandas
    writes one, and is left out.

    Arguments:
        path: The file.
        names: Column names that are known to be names, whatever they look like.
        options: How to read the file. Default: by guesses, which warnings report.
        source: The name of the file in messages. Default: its path.
        like: A file with the same dialect. This one holds some of its rows, with a header and without an index.

    Attributes:
        dialect: The separator, the decimal mark and the encoding.
        columns: The column names, including that of an index.
        has_header: Whether the first row holds the names.
        has_index: Whether the first column is an index.
    """

    dialect: Dialect
    columns: list[str]
    has_header: bool
    has_index: bool

    def __init__(
        self,
        path: Path,
        names: Sequence[str] = (),
        options: ReadOptions | None = None,
        source: str | None = None,
        like: "CSVFile | None" = None,
    ) -> None:
        options = options or ReadOptions()
        self.path, self.source = path, source or str(path)
        self.dialect = find_dialect(path, options, self.source) if like is None else replace(like.dialect, first_line=0)
        self.missing = (*MISSING, *options.missing)
        self._warns_of_points = bool(self.dialect.ambiguous)
        self._unpacked = unpacked_bytes(path, self.dialect.separator, self.source)
        if like is not None:
            self.columns = like.columns[like.has_index :]
            self.has_header, self.has_index = True, False
            return
        with closing(self._rows()) as rows:
            _, first = next(rows, (0, []))
            if not first:
                raise ValueError(f"{self.source}: the file is empty (blank lines only)")
            check_width(len(first), self.source)
            below = [self._plain(row) for _, row in islice(rows, _HEAD_ROWS)]
        cells = self._plain(first)
        self.has_header = self._is_header(cells, below, names)
        self.has_index = self.has_header and _is_index(cells, below)
        self.columns = [cell.strip() for cell in first] if self.has_header else list(default_names(len(cells)))
        for place, name in enumerate(self.columns):
            if not name and not (place == 0 and self.has_index):
                at_end = ", or remove the separator at the end of each line" * (place == len(self.columns) - 1)
                raise ValueError(f"{self.source}: column {place + 1} has no name; name it{at_end}")
        check_unique(self.columns, self.source, hint=" (if the first row is data, put a header above it)")

    @property
    def most_rows(self) -> int:
        """A bound on the number of rows: a cell takes a byte at least."""
        return 1 + self._unpacked // ((CELL_BYTES + 1) * len(self.columns))

    def parts(self, rows: int | None, text_columns: Sequence[str] = ()) -> Iterator[pd.DataFrame]:
        """Yield the table without its index, ``rows`` rows at a time or, with ``None``, at once.

        ``text_columns`` are read as text even if they look like numbers. A table read at once warns of its index. A
        warning tells once how an ambiguous point in another column is read.
        """
        self._warn_of_points(text_columns)
        if rows is None:
            check_fits(self._unpacked, self.source)
            if self.has_index:
                warn(
                    f"{self.source}: its first column has no name and only labels the rows: not modelled",
                    SkippedWarning,
                )
        dtypes = {place: object for place, name in enumerate(self.columns) if name in text_columns}
        lengths_checked = False
        for frame in self._read(rows, na_values=list(self.missing), dtype=dtypes):
            # pandas fills short rows up with missing values
            if not lengths_checked and frame.shape[1] > 1 and bool(frame.iloc[:, -1].isna().any()):
                self.check_lengths()
                lengths_checked = True
            yield frame.iloc[:, 1:].copy() if self.has_index else frame

    def _warn_of_points(self, text_columns: Sequence[str]) -> None:
        """Warn once of a column of numbers in which points before three digits are read as decimal points."""
        cells = (self.dialect.ambiguous.get(d) for d, name in enumerate(self.columns) if name not in text_columns)
        if self._warns_of_points and (cell := next(filter(None, cells), None)) is not None:
            self._warns_of_points = False
            warn(f"{self.source}: {cell!r} is read as {float(cell):g}; if points separate thousands: --decimal ,")

    def text_parts(self, rows: int) -> Iterator[pd.DataFrame]:
        """Yield the whole table, index included, as the text of its cells, ``rows`` rows at a time."""
        return self._read(rows, dtype=str, na_filter=False)

    def _read(self, rows: int | None, **options: Any) -> Iterator[pd.DataFrame]:
        with self._one_line_errors():
            table = pd.read_csv(
                self.path,
                names=self.columns,
                sep=self.dialect.separator,
                decimal=self.dialect.decimal,
                encoding=self.dialect.encoding,
                skiprows=self.dialect.first_line,
                header=0 if self.has_header else None,
                index_col=False,
                skipinitialspace=True,
                low_memory=False,  # infer types from all rows at once
                **_EXACT_NUMBERS,
                chunksize=rows,
                keep_default_na=False,  # MISSING has pandas' marks
                **options,
            )
        parts = iter([table]) if isinstance(table, pd.DataFrame) else table
        while True:
            with self._one_line_errors():
                frame = next(parts, None)
            if frame is None:
                return
            yield frame

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # pandas cuts off the ends of long rows
                yield
        except pd.errors.EmptyDataError:
            raise ValueError(f"{self.source}: expected at least one row of data, got none") from None
        except (pd.errors.ParserError, pd.errors.ParserWarning):
            self._check_quotes()
            self.check_lengths()
            raise ValueError(f"{self.source}: cannot be read: damaged, or not a CSV file") from None
        except Exception:
            with decoding(self.source, self.dialect.encoding):
                raise

    def line(self, row: int) -> int | None:
        """Return the 1-based line of a row of data; ``None`` if there is no such row."""
        return next((line for line, _ in islice(self._rows(), row + self.has_header, None)), None)

    def code_columns(self) -> list[str]:
        """Return the columns that hold numbers with leading zeros: codes, whose zeros matter."""
        encoding = self.dialect.encoding
        with decoding(self.source, encoding), open_text(self.path, encoding) as file:
            if not any(_MAYBE_CODE.search(line) for line in file):
                return []
        rows = islice(self._rows(), int(self.has_header), None)
        places = {place for _, row in rows for place, cell in enumerate(row) if _CODE.fullmatch(cell.strip())}
        return [name for place, name in enumerate(self.columns) if place in places]

    def _plain(self, row: Sequence[str]) -> list[str]:
        """Return cells without the spaces around them, as numbers with a decimal point, and as the usual gaps."""
        cells = ["" if cell.strip() in self.missing else cell.strip() for cell in row]
        if self.dialect.decimal == ".":
            return cells
        return [point if is_number(point := cell.replace(self.dialect.decimal, ".")) else cell for cell in cells]

    def _rows(self) -> Generator[tuple[int, list[str]]]:
        """Yield the cells of the rows that are not blank, each with its 1-based line in the file."""
        encoding, before = self.dialect.encoding, self.dialect.first_line
        start = before + 1
        try:
            with decoding(self.source, encoding), open_text(self.path, encoding) as file:
                rows = csv.reader(islice(file, before, None), delimiter=self.dialect.separator, skipinitialspace=True)
                for row in rows:
                    if len(row) > 1 or (row and row[0].strip()):
                        yield before + rows.line_num, row
                    start = before + rows.line_num + 1
        except csv.Error:
            self._fail_at(start)

    def _check_quotes(self) -> None:
        """Raise if a quoted cell never ends."""
        with open_text(self.path, self.dialect.encoding) as file:
            before = self.dialect.first_line
            lines, separator = islice(file, before, None), self.dialect.separator
            rows = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
            start = before + 1
            try:
                for _ in rows:
                    start = before + rows.line_num + 1
            except csv.Error as error:
                if "end of data" in str(error) or "limit" in str(error):
                    self._fail_at(start)

    def _fail_at(self, line: int) -> NoReturn:
        raise ValueError(
            f"{self.source}: line {line}: begins a cell in quotation marks that never ends, or one of more than "
            f"{csv.field_size_limit():,} characters"
        )

    def check_lengths(self) -> None:
        """Check that all rows have as many cells as the first."""
        for line, row in self._rows():
            if len(row) != len(self.columns):
                count = len(self.columns)
                is_comment = any(cells and cells[0].startswith("#") for cells in (self.columns, row))
                raise ValueError(
                    f"{self.source}: line {line}: expected {count} cell{'s' * (count > 1)} like the first row, got "
                    f"{len(row)}" + "; a line that begins with # is read like any other, remove it" * is_comment
                )

    def _is_header(self, cells: Sequence[str], below: Sequence[Sequence[str]], names: Sequence[str]) -> bool:
        if all(is_number(cell) for cell in cells):
            return self._are_numeric_names(cells, below)
        values = [cell for cell in cells if _is_value(cell)]
        certain = bool(names) and set(names) <= set(cells)
        if values and not certain and not _has_text_above_number(cells, below):
            warn(
                f"{self.source}: its first row was taken for a header, though {values[0]!r} looks like a value; if it "
                "is one, put a header above"
            )
        return True

    def _are_numeric_names(self, cells: Sequence[str], below: Sequence[Sequence[str]]) -> bool:
        """Return whether a first row of distinct whole numbers holds names: years, or pandas' default names.

        It does if a column below is text, if all columns below hold fractions, or, for 0, 1, 2, ..., if one does.
        """
        if len(cells) < 2 or len(set(cells)) < len(cells) or not all(cell.isdecimal() for cell in cells):
            return False
        columns = list(zip(*(row for row in below if len(row) == len(cells)), strict=True))
        if any(all(_is_text(cell) for cell in column) for column in columns):
            return True
        fractional = [any(_is_fraction(cell) for cell in column) for column in columns]
        counted = list(cells) == [str(place) for place in range(len(cells))]
        if columns and (all(fractional) or (counted and any(fractional))):
            warn(
                f"{self.source}: its first row was taken for a header ({', '.join(cells[:3])}, ...); if it is data, "
                "put a header above"
            )
            return True
        if len(cells) > 2 and all(int(one) < int(other) for one, other in pairwise(cells)):
            warn(f"{self.source}: its first row ({', '.join(cells[:3])}, ...) was taken for data; if it is a header, "
                 "give the columns names with letters")  # fmt: skip
        return False


def _is_index(cells: Sequence[str], below: Sequence[Sequence[str]]) -> bool:
    """Return whether the first column has no name and distinct whole numbers or texts for cells.

    If its name is empty, they may also look like the row names of R, such as ``1.1``.
    """
    if not below or len(cells) < 2 or cells[0] not in _INDEX_NAMES:
        return False
    labels = [row[0].strip() for row in below]
    fractions = [label for label in labels if _is_fraction(label) and (cells[0] or not _ROW_NAME.fullmatch(label))]
    return len(set(labels)) == len(labels) and not fractions and not set(labels) & set(MISSING)


def _has_text_above_number(cells: Sequence[str], below: Sequence[Sequence[str]]) -> bool:
    """Return whether a text of the first row stands above a number, and so can only be a name."""
    pairs = zip(cells, below[0], strict=False) if below else ()
    return any(
        not is_number(name) and is_number(cell) and cell.strip() not in (*MISSING, *TRUTH) for name, cell in pairs
    )


def _is_value(cell: str) -> bool:
    """Return whether a cell is a truth value or a number that is no year or count."""
    return cell in TRUTH or (is_number(cell) and cell not in MISSING and not cell.isdecimal())


def _is_text(cell: str) -> bool:
    return any(map(str.isalpha, cell)) and not is_number(cell)


def _is_fraction(cell: str) -> bool:
    try:
        return not float(cell).is_integer()
    except (ValueError, OverflowError):
        return False
