"""The separator, decimal mark and encoding of a CSV file, as given or guessed from its first lines."""

import codecs
import csv
import gzip
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from arcsm._runtime.files import FilePath, reading
from arcsm.data.number_marks import ambiguous_points, likely_decimal, proven_decimal
from arcsm.data.read_options import ReadOptions
from arcsm.errors import warn
from arcsm.stored_values import stored

TAB_SUFFIXES = (".tsv", ".tsv.gz")
_SEPARATORS = (",", ";", "\t", "|")
_MARKS = {"\t": "a tab", " ": "a space"}
_SAMPLE_CHARACTERS = 1 << 16
_UTF_8 = ("utf-8", "utf-8-sig")  # without and with a byte order mark
_BYTE_ORDER_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF8: "utf-8-sig"}
_NAMED_SEPARATOR = re.compile(r"sep=([^\w\s\"']|\t)\s*", re.IGNORECASE)  # the first line that Excel may write
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")
_COMMA_DECIMAL = re.compile(r"\s*[-+]?(\d+|\d{1,3}(\.\d{3})+),\d+\s*")


@stored
@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written.

    Attributes:
        separator: The character between cells.
        decimal: The decimal mark.
        encoding: The encoding.
        first_line: 1 if the first line only names the separator, else 0.
        line_end: The end of a line.
        is_decimal_guessed: Whether the decimal mark is a guess, which a column may contradict.
        ambiguous: The first number of each column with a point that nothing tells from one between thousands, by the
            place of the column. It is empty between commas, where points come before decimals.
    """

    separator: str
    decimal: str
    encoding: str
    first_line: int = 0
    line_end: str = "\n"
    is_decimal_guessed: bool = False
    ambiguous: Mapping[int, str] = field(default_factory=dict)

    def check_read(self) -> None:
        """Check a dialect that was read from a file."""
        codecs.lookup(self.encoding)
        if len(self.separator) != 1 or self.decimal not in (".", ",") or self.line_end not in ("\n", "\r\n", "\r"):
            raise ValueError("Dialect: expected one separator, a decimal mark and a line end")


def open_text(path: Path, encoding: str) -> IO[str]:
    """Open a text file, gzipped or not."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")
    return path.open(encoding=encoding, newline="")


@contextmanager
def decoding(source: FilePath, encoding: str) -> Iterator[None]:
    """Turn what damaged files raise, but for ``csv.Error``, into a one-line ValueError that names the file."""
    try:
        yield
    except csv.Error:
        raise
    except UnicodeError:
        if _is_archive(source):
            raise ValueError(f"{source}: is a workbook or an archive, not a CSV file; export it as CSV") from None
        if encoding in _UTF_8:
            raise ValueError(f"{source}: is not in UTF-8; give its encoding, such as --encoding cp1252") from None
        raise ValueError(
            f"{source}: is not in {encoding}; give its encoding, such as --encoding utf-8, or for two tables both of "
            f"theirs in their order, such as --encoding {encoding} --encoding utf-8"
        ) from None
    except Exception:
        with reading(source, "a CSV file"):
            raise


def _is_archive(source: FilePath) -> bool:
    """Return whether a file begins like a ZIP archive, as workbooks do."""
    if not Path(source).is_file():
        return False
    with Path(source).open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def find_dialect(path: Path, options: ReadOptions, source: str) -> Dialect:
    """Return the dialect of a CSV file. A warning tells if the separator or a decimal comma was guessed."""
    encoding = options.encoding or "utf-8"
    if codecs.lookup(encoding).name == "utf-8":
        encoding = _encoding_by_mark(path, source)
    with decoding(source, encoding), open_text(path, encoding) as file:
        text = file.read(_SAMPLE_CHARACTERS)
    lines = text.splitlines(keepends=True)
    named = _NAMED_SEPARATOR.fullmatch(lines[0]) if lines else None
    lines = lines[1:] if named else lines
    lines = lines[:-1] if len(text) == _SAMPLE_CHARACTERS and len(lines) > 1 else lines  # the last line may be cut off
    is_tabbed = path.name.lower().endswith(TAB_SUFFIXES)
    expected = options.separator or (named[1] if named else "\t" if is_tabbed else None)
    separator = expected or _guess_separator(lines)
    rows = _cells(lines, separator) if options.decimal is None else []
    proven = options.decimal or proven_decimal(rows, separator)
    decimal = proven or _default_decimal(rows, separator, options) or likely_decimal(rows, separator)
    guesses = []
    if expected is None and separator != ",":
        guesses.append(f"{_MARKS.get(separator, repr(separator))} between cells (--sep)")
    if options.decimal is None and decimal == ",":
        guesses.append("',' before decimals (--decimal)")
    if guesses:
        warn(f"{source}: guessed {' and '.join(guesses)}")
    ambiguous = ambiguous_points(rows) if proven is None and decimal == "." and separator != "," else {}
    line_end = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    return Dialect(separator, decimal, encoding, int(named is not None), line_end, options.decimal is None, ambiguous)


def _encoding_by_mark(path: Path, source: str) -> str:
    """Return the encoding that the byte order mark of a file tells; UTF-8 without one."""
    with reading(source, "a CSV file"), gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        start = file.read(max(map(len, _BYTE_ORDER_MARKS)))
    return next((encoding for mark, encoding in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8")


def _cells(lines: Sequence[str], separator: str) -> list[list[str]]:
    """Return the cells of the rows that are not blank, as far as they can be read."""
    rows = []
    try:
        for row in csv.reader(lines, delimiter=separator, skipinitialspace=True):
            if any(cell.strip() for cell in row):
                rows.append(row)
    except csv.Error:
        pass  # the rows before it decide
    return rows


def _guess_separator(lines: Sequence[str]) -> str:
    """Return the separator that gives all rows the same number of cells, the comma if several or no others do."""
    regular = {}
    for separator in _SEPARATORS:
        rows = _cells(lines, separator)
        if rows and len(rows[0]) > 1 and all(len(row) == len(rows[0]) for row in rows):
            regular[separator] = rows
    if "," not in regular:
        if any(len(row) > 1 for row in _cells(lines[:1], ",")) and not regular:
            return ","
        if not regular and _are_spaced_numbers(lines):
            return " "
        return next(iter(regular), None) or _of_first_line(lines)
    for separator, rows in regular.items():  # "1,5;2,5" has two cells, not three
        with_commas = [cell for row in rows for cell in row if "," in cell]
        if separator != "," and with_commas and all(_COMMA_DECIMAL.fullmatch(cell) for cell in with_commas):
            return separator
    return ","


def _are_spaced_numbers(lines: Sequence[str]) -> bool:
    """Return whether all lines have the same number of cells between single spaces, below a header all numbers."""
    rows = _cells(lines, " ")
    cells = [cell for row in rows[1:] for cell in row]
    return (
        bool(cells)
        and len(rows[0]) > 1
        and all(len(row) == len(rows[0]) for row in rows)
        and all(_NUMBER.fullmatch(cell) for cell in cells)
    )


def _of_first_line(lines: Sequence[str]) -> str:
    """Return the most frequent separator of the first line: of ragged rows, whose lengths are checked later."""
    first = next((line for line in lines if line.strip()), "")
    return max(_SEPARATORS, key=first.count)


def _default_decimal(rows: Sequence[Sequence[str]], separator: str, options: ReadOptions) -> str | None:
    """Return the decimal mark of another table, unless it is a comma and this one has bare points between commas."""
    if options.default_decimal == separator and ambiguous_points(rows):
        return None
    return options.default_decimal
