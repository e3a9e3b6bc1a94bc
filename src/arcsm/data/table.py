"""Tables in CSV, Parquet, NPY and NPZ files, read as arrays of numbers and written."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from arcsm._runtime.files import FilePath, atomic_path, existing_file
from arcsm.data.checks import check_column_names, check_finite, check_unique, check_width
from arcsm.data.column_types import default_names, holds_numbers, is_number, number_array, row_place
from arcsm.data.csv_dialect import TAB_SUFFIXES, Dialect
from arcsm.data.csv_files import CSVFile
from arcsm.data.number_formats import NumberFormat
from arcsm.data.number_marks import OTHER_MARK, is_undecided, may_separate_thousands, separates_thousands
from arcsm.data.numpy_files import read_array, split_key
from arcsm.data.parquet_files import index_names, labelled_parts, parquet_parts, parquet_writer
from arcsm.data.read_options import ReadOptions
from arcsm.data.row_labels import label_name
from arcsm.data.spreadsheets import without_formulas
from arcsm.errors import SkippedWarning, warn

TABLE_SUFFIXES = (".csv", ".csv.gz", *TAB_SUFFIXES, ".parquet", ".npy", ".npz")
TEXT_SUFFIXES = (".csv", ".csv.gz", *TAB_SUFFIXES)
FrameWriter = Callable[[Path], AbstractContextManager[Callable[[pd.DataFrame], None]]]
_PLAIN = Dialect(",", ".", "utf-8")
_ARRAY_SUFFIXES = (".npy", ".npz")


def _suffix(path: FilePath, known: Sequence[str]) -> str:
    name = Path(path).name.lower()
    suffix = next((suffix for suffix in known if name.endswith(suffix)), None)
    if suffix is None:
        raise ValueError(f"{path}: expected a file name that ends in {', '.join(known)}")
    return suffix


@dataclass(frozen=True, eq=False)
class Sample:
    """Where the rows of a file are in another one, from which they were drawn.

    Attributes:
        numbers: Their numbers there, in ascending order.
        total: The number of rows there.
        file: The other file. A copy has its dialect, a header, and no index.
    """

    numbers: NDArray[np.int64]
    total: int
    file: "TableFile"


class TableFile:
    """A file that holds a table, read at once or in parts; see :func:`read_table` for the other arguments.

    Arguments:
        options: How to read a CSV file.
        names: Columns that are known to be names, whatever they look like.
        source: The name of the file in messages. Default: its path.

    Attributes:
        sample: Where its rows are in another file, from which they were drawn, or ``None``.
    """

    def __init__(
        self,
        path: FilePath,
        key: str | None = None,
        options: ReadOptions | None = None,
        names: Sequence[str] = (),
        source: str | None = None,
    ) -> None:
        self.path, self.key = split_key(path, key)
        self.options, self.names = options or ReadOptions(), tuple(names)
        self.suffix = _suffix(self.path, TABLE_SUFFIXES)
        if self.key is not None and self.suffix != ".npz":
            raise ValueError(f"key: expected None for a {self.suffix} file, got {self.key!r} ({path})")
        existing_file(self.path)
        self.source = source or str(self.path)
        self.sample: Sample | None = None
        self._formats: dict[str, NumberFormat | None] = {}

    @property
    def is_text(self) -> bool:
        """Whether the file is a CSV file."""
        return self.suffix in TEXT_SUFFIXES

    @cached_property
    def csv(self) -> CSVFile:
        """The CSV file."""
        like = None if self.sample is None else self.sample.file.csv
        return CSVFile(self.path, self.names, self.options, self.source, like)

    @property
    def decimal(self) -> str:
        """The decimal mark of text in the file."""
        return self.csv.dialect.decimal if self.is_text else self.options.decimal or "."

    def decimal_of(self, column: pd.Series) -> str:
        """Return the decimal mark of a column: that of the file, unless it separates thousands in the column."""
        if not self.is_decimal_guessed or holds_numbers(column.dtype):
            return self.decimal
        may_differ = self.decimal == "," or self.csv.dialect.separator == ";"
        return OTHER_MARK[self.decimal] if may_differ and separates_thousands(column, self.decimal) else self.decimal

    @property
    def is_decimal_guessed(self) -> bool:
        """Whether the decimal mark is that of a CSV file, and not given."""
        return self.is_text and self.csv.dialect.is_decimal_guessed

    def describe(self, column: pd.Series, form: NumberFormat) -> str:
        """Return how the numbers of a text column are read, and which option overrules it if nothing decides."""
        hint = ""
        if self.is_decimal_guessed and self.csv.dialect.separator != ",":
            if form.decimal == "." and may_separate_thousands(column, "."):
                hint = " (if points separate thousands: --decimal ,)"
            elif form.thousands == "," and is_undecided(column, ","):
                hint = " (if commas come before decimals: --decimal ,)"
            elif form.decimal == "," and is_undecided(column, ","):
                hint = " (if commas separate thousands: --decimal .)"
        return form.describe() + hint

    def array(self, flatten: bool = False) -> np.ndarray:
        """Return the array of an NPY or NPZ file, ``(n, D)``, as float32 if it has single or half precision."""
        array = read_array(self.path, self.key)
        if array.ndim == 0:
            raise ValueError(f"{self.path}: expected an array of shape (n, D), got a single number")
        if array.ndim > 2 and not flatten:
            raise ValueError(
                f"{self.path}: expected an array of shape (n, D), got {array.shape} (in Python, flatten=True)"
            )
        if len(array) == 0:
            raise ValueError(f"{self.path}: expected at least one row of data, got none")
        array = array.reshape(len(array), int(np.prod(array.shape[1:])))  # (n, D)
        check_width(array.shape[1], self.path)
        single = array.dtype.kind == "f" and array.dtype.itemsize <= 4
        return array.astype(np.float32 if single else np.float64)

    def parts(self, rows: int | None = None, text_columns: Sequence[str] | None = ()) -> Iterator[pd.DataFrame]:
        """Yield the table in the types of the file, indexed by the numbers of its rows, ``rows`` at a time or all.

        Columns of a CSV file are numbers, truth values or text. Text are ``text_columns`` or, with ``None``, those that
        hold numbers with leading zeros. NPY and NPZ files always come at once.
        """
        first = 0
        for frame in self._parts(rows, text_columns):
            if len(frame):
                names = [str(name) for name in frame.columns]
                check_width(len(names), self.source)
                check_unique(names, self.source)
                last = first + len(frame)
                yield frame.set_axis(names, axis=1).set_axis(pd.RangeIndex(first, last), axis=0)
                first = last
        if not first:
            raise ValueError(f"{self.source}: expected at least one row of data, got none")

    def _parts(self, rows: int | None, text_columns: Sequence[str] | None) -> Iterator[pd.DataFrame]:
        if self.suffix in _ARRAY_SUFFIXES:
            values = self.array().astype(np.float64)
            yield pd.DataFrame(values, columns=list(default_names(values.shape[1])))
        elif self.suffix == ".parquet":
            if rows is None and self.index:
                listed = ", ".join(map(repr, self.index))
                warn(f"{self.source}: its index only labels the rows: not modelled ({listed})", SkippedWarning)
            yield from parquet_parts(self.path, rows)
        else:
            yield from self.csv.parts(rows, self.csv.code_columns() if text_columns is None else text_columns)

    def raw_parts(self, rows: int) -> Iterator[pd.DataFrame]:
        """Yield the table exactly as the file holds it, ``rows`` rows at a time or, from NPY and NPZ files, at once.

        Columns of a CSV file are text. Columns of a Parquet file keep their Arrow types. An index comes first.
        """
        if self.is_text:
            yield from (frame.reset_index(drop=True) for frame in self.csv.text_parts(rows))
        elif self.suffix == ".parquet":
            yield from labelled_parts(self.path, rows)
        else:
            yield from self._parts(None, ())

    @cached_property
    def index(self) -> list[str]:
        """The columns of :meth:`raw_parts` that are an index."""
        if self.is_text:
            return self.csv.columns[:1] if self.csv.has_index else []
        return index_names(self.path) if self.suffix == ".parquet" else []

    def locate(self, row: int) -> str:
        """Return the 1-based place of a row of data, with its line in a CSV file."""
        if self.sample is not None:
            return row_place(int(self.sample.numbers[row]))
        line = self.csv.line(row) if self.is_text else None
        return row_place(row) if line is None else f"{row_place(row)} (line {line})"

    def check_named(self, columns: Sequence[str]) -> None:
        """Check that all columns that an option names are among those of the file."""
        index = self.index if self.sample is None else self.sample.file.index
        unknown = [name for name in self.options.named if name not in columns and name not in index]
        if unknown:
            raise ValueError(
                f"{self.source}: has no column {', '.join(map(repr, unknown))}; it has {', '.join(columns[:20])}"
            )

    def labels(self, raw: pd.DataFrame, ids: Sequence[str] = ()) -> pd.DataFrame:
        """Return the columns of a part of :meth:`raw_parts` that label its rows: its index, and ``ids``."""
        names = [name for name in raw.columns if name in self.index or str(name) in ids]
        return raw[names].rename(columns={"": label_name(raw.columns)})

    def numbers(self, frame: pd.DataFrame, allow_missing: bool = False) -> np.ndarray:
        """Return columns of :meth:`parts` as an array; see :func:`~arcsm.data.column_types.number_array`.

        Text in a CSV file may have a common format, such as ``$1,234.50``; a warning tells how it is read.
        """
        if self.is_text:
            frame = frame.copy()
            for name in frame.columns:
                if not holds_numbers(frame[name].dtype):
                    frame[name] = self._read_numbers(frame[name])
        values = number_array(frame, self.source, self.locate)
        if not allow_missing:
            check_finite(values, tuple(frame.columns), self.source, lambda row: self.locate(frame.index[row]))
        return values

    def _read_numbers(self, column: pd.Series) -> pd.Series:
        """Convert text to numbers if all of its cells have the format that the first ones have."""
        name = str(column.name)
        if name not in self._formats:
            self._formats[name] = NumberFormat.infer(column, self.decimal_of(column))
            if (form := self._formats[name]) is not None:
                warn(f"{self.source}: read {name!r} as {self.describe(column, form)}")
        form = self._formats[name]
        numbers = column if form is None else form.parse(column)
        return column if bool((numbers.isna() & column.notna()).any()) else numbers


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of numbers with named columns.

    Attributes:
        values: float32 or float64, shape ``(n, D)``, in the units of the file.
        columns: The D column names, all different.
    """

    values: np.ndarray
    columns: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"values: expected a float32 or float64 array of shape (n, D), got {self.values.dtype} of shape "
                f"{self.values.shape}"
            )
        check_column_names(self.columns, self.values.shape[1])

    def __len__(self) -> int:
        return len(self.values)


def read_table(
    path: FilePath,
    key: str | None = None,
    *,
    flatten: bool = False,
    allow_missing: bool = False,
    options: ReadOptions | None = None,
) -> Table:
    """Read a table of numbers.

    The first row of a CSV file is a header if one of its cells is not a number. Nothing is unpickled. Integers and
    truth values become float64, float16 becomes float32, and a one-dimensional array becomes one column. Columns
    without a name are called ``x0, x1, ...``.

    Arguments:
        path: A CSV, Parquet, NPY or NPZ file. ``tables.npz:left`` also names an array. The separator and the decimal
            mark of a CSV file are guessed; a warning tells if they are not the usual ones.
        key: The array of an NPZ file. Default: its only array, ``X`` or ``x_train``.
        flatten: Turn an array of more than two dimensions into ``(n, -1)``.
        allow_missing: Accept missing and infinite values.
        options: How to read a CSV file.

    Raises:
        ValueError: If the file does not exist, has an unknown extension, is damaged or empty, or holds anything but
            finite numbers. The message is one line. It counts rows of data from 1, and names the line in a CSV file.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "points.csv"
        ...     _ = path.write_text("a,b\\n1,2\\n3,4\\n")
        ...     table = read_table(path)
        >>> table.columns, table.values.tolist()
        (('a', 'b'), [[1.0, 2.0], [3.0, 4.0]])
    """
    file = TableFile(path, key, options)
    if file.suffix in _ARRAY_SUFFIXES:
        values = file.array(flatten)
        table = Table(values, default_names(values.shape[1]))
        if not allow_missing:
            check_finite(values, table.columns, file.path, row_place)
        return table
    frame = next(file.parts())
    return Table(file.numbers(frame, allow_missing), tuple(frame.columns))


def check_reserved_columns(file: TableFile, reserved: Sequence[str], ids: Sequence[str] | None = None) -> None:
    """Check that no copied column (with ``ids``, no label of the rows) has the name of a column of results."""
    first = next(file.raw_parts(1), None)
    copied = pd.DataFrame() if first is None else first if ids is None else file.labels(first, ids)
    clash = next((name for name in copied.columns if name in reserved), None)
    if clash is not None:
        raise ValueError(
            f"{file.source}: has a column {clash!r} already, a name that the output uses; rename it, or --ignore it"
        )


def write_table(
    path: FilePath, values: np.ndarray, columns: Sequence[str] | None = None, no_formulas: bool = False
) -> None:
    """Write numbers as CSV, Parquet or NPY (which keeps no column names), with all their digits.

    An existing file is replaced only when the new one is complete.

    Arguments:
        path: The file; its extension is the format.
        values: Numbers of shape ``(n, D)``.
        columns: D different names. Default: ``x0, x1, ...``.
        no_formulas: Change names that spreadsheet programs take for formulas; see :func:`frame_writer`.

    Raises:
        ValueError: If the extension is unknown or the folder does not exist, if ``values`` or ``columns`` have another
            type or shape, or if all names of a CSV file are numbers, so that the header would be read as data.
    """
    suffix = _suffix(path, (*_WRITERS, ".npy"))
    if values.ndim != 2 or values.dtype.kind not in "buif":
        raise ValueError(
            f"values: expected numbers of shape (n, D), got {values.dtype} of shape {values.shape} (for {path})"
        )
    names = default_names(values.shape[1]) if columns is None else tuple(columns)
    check_column_names(names, values.shape[1])
    if suffix == ".csv":
        check_header(names)
    with atomic_path(path) as temporary:
        if suffix == ".npy":
            np.save(temporary, values, allow_pickle=False)
        else:
            with _WRITERS[suffix](temporary) as write:
                frame = pd.DataFrame(values, columns=pd.Index(names))
                write(without_formulas(frame) if no_formulas else frame)


def check_header(names: Sequence[str]) -> None:
    """Check that a header is not all numbers, which CSV readers would take for data."""
    if all(is_number(name) for name in names):
        raise ValueError(
            f"columns: expected a name that is not a number, or a CSV reader takes {tuple(names)} for data"
        )


def write_frame(path: FilePath, frame: pd.DataFrame) -> None:
    """Write a table as CSV or Parquet; see :func:`frame_writer`."""
    with frame_writer(path) as write:
        write(frame)


@contextmanager
def frame_writer(
    path: FilePath, like: TableFile | Dialect | None = None, no_formulas: bool = False
) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Provide a function that appends a part of a table to a file that ends in ``.csv``, ``.tsv`` or ``.parquet``.

    Missing folders are made. The file appears, or replaces an older one, only when all parts are written. A warning
    tells if all column names of a CSV file are numbers. Written CSV files have the separator, decimal mark, encoding
    and line ends of the CSV file or the dialect ``like``, written Parquet files the pandas types of the Parquet file
    ``like``. Parquet files also hold the index of a frame, unless it is a range. With ``no_formulas``, CSV files hold
    no text that spreadsheet programs take for a formula; see :func:`~arcsm.data.spreadsheets.without_formulas`.
    """
    suffix = _suffix(path, tuple(_WRITERS))
    writer = _WRITERS[suffix]
    if isinstance(like, Dialect):
        if suffix != ".parquet":
            writer = partial(_csv_writer, dialect=like if suffix == ".csv" else replace(like, separator="\t"))
    elif suffix == ".parquet" and like is not None and like.suffix == ".parquet":
        writer = partial(parquet_writer, like=like.path)
    elif suffix == ".csv" and like is not None and like.suffix in (".csv", ".csv.gz"):
        dialect = like.csv.dialect
        writer = partial(_csv_writer, dialect=dialect)
    elif suffix == ".tsv" and like is not None:
        dialect = like.csv.dialect if like.is_text else replace(_PLAIN, decimal=like.decimal)
        writer = partial(_csv_writer, dialect=replace(dialect, separator="\t"))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, writer(temporary) as write:
        yield (lambda frame: write(without_formulas(frame))) if no_formulas else write


@contextmanager
def _csv_writer(path: Path, dialect: Dialect = _PLAIN) -> Iterator[Callable[[pd.DataFrame], None]]:
    with path.open("w", encoding=dialect.encoding, newline="") as file:

        def write(frame: pd.DataFrame) -> None:
            is_first = file.tell() == 0
            if is_first and all(is_number(str(name)) for name in frame.columns):
                warn("all column names are numbers, which CSV readers may take for data")
            form: dict[str, Any] = {"sep": dialect.separator, "decimal": dialect.decimal}
            frame.to_csv(file, index=False, header=is_first, lineterminator=dialect.line_end, **form)

        yield write


_WRITERS: dict[str, FrameWriter] = {
    ".csv": _csv_writer,
    ".tsv": partial(_csv_writer, dialect=replace(_PLAIN, separator="\t")),
    ".parquet": parquet_writer,
}
