"""Tables in CSV, Parquet, NPY and NPZ files, as arrays of numbers or as pandas frames with typed columns."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from arcsm._runtime.files import FilePath, atomic_path, existing_file
from arcsm.data.checks import check_column_names, check_finite, check_unique, check_width
from arcsm.data.column_types import default_names, holds_names, is_number, number_array, row_place, typed_column
from arcsm.data.csv_files import CSVFile
from arcsm.data.numpy_files import read_array, split_key
from arcsm.data.parquet_files import parquet_parts, parquet_writer
from arcsm.errors import warn

TABLE_SUFFIXES = (".csv", ".csv.gz", ".parquet", ".npy", ".npz")
_ARRAY_SUFFIXES = (".npy", ".npz")
_PART_ROWS = 50_000


def _suffix(path: FilePath, known: Sequence[str]) -> str:
    name = Path(path).name.lower()
    suffix = next((suffix for suffix in known if name.endswith(suffix)), None)
    if suffix is None:
        raise ValueError(f"{path}: expected a file name that ends in {', '.join(known)}")
    return suffix


class TableFile:
    """A file that holds a table, read at once or in parts; see :func:`read_table` for the arguments."""

    def __init__(self, path: FilePath, key: str | None = None) -> None:
        self.path, self.key = split_key(path, key)
        self.suffix = _suffix(self.path, TABLE_SUFFIXES)
        if self.key is not None and self.suffix != ".npz":
            raise ValueError(f"key: expected None for a {self.suffix} file, got {self.key!r} ({path})")
        existing_file(self.path)
        self._csv: CSVFile | None = None

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
                check_width(len(names), self.path)
                check_unique(names, self.path)
                last = first + len(frame)
                yield frame.set_axis(names, axis=1).set_axis(pd.RangeIndex(first, last), axis=0)
                first = last
        if not first:
            raise ValueError(f"{self.path}: expected at least one row of data, got none")

    def _parts(self, rows: int | None, text_columns: Sequence[str] | None) -> Iterator[pd.DataFrame]:
        if self.suffix in _ARRAY_SUFFIXES:
            values = self.array().astype(np.float64)
            yield pd.DataFrame(values, columns=list(default_names(values.shape[1])))
        elif self.suffix == ".parquet":
            yield from parquet_parts(self.path, rows)
        else:
            self._csv = CSVFile(self.path, text_columns or ())
            yield from self._csv.parts(rows, self._csv.code_columns() if text_columns is None else text_columns)

    def locate(self, row: int) -> str:
        """Return the 1-based place of a row: its line in a CSV file, else its number."""
        line = None if self._csv is None else self._csv.line(row)
        return row_place(row) if line is None else f"line {line}"

    def numbers(self, frame: pd.DataFrame, allow_missing: bool = False) -> np.ndarray:
        """Return columns of :meth:`parts` as an array; see :func:`~arcsm.data.column_types.number_array`."""
        values = number_array(frame, self.path, self.locate)
        if not allow_missing:
            check_finite(values, tuple(frame.columns), self.path, lambda row: self.locate(frame.index[row]))
        return values


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


def read_table(path: FilePath, key: str | None = None, *, flatten: bool = False, allow_missing: bool = False) -> Table:
    """Read a table of numbers.

    The first row of a CSV file is a header if one of its cells is not a number. Nothing is unpickled. Integers and
    truth values become float64, float16 becomes float32, and a one-dimensional array becomes one column. Columns
    without a name are called ``x0, x1, ...``.

    Arguments:
        path: A CSV, Parquet, NPY or NPZ file. ``tables.npz:left`` also names an array.
        key: The array of an NPZ file. Default: its only array, ``X`` or ``x_train``.
        flatten: Turn an array of more than two dimensions into ``(n, -1)``.
        allow_missing: Accept missing and infinite values.

    Raises:
        ValueError: If the file does not exist, has an unknown extension, is damaged or empty, or holds anything but
            finite numbers. The message is one line and names the line of a CSV file or the row of another one.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "points.csv"
        ...     _ = path.write_text("a,b\\n1,2\\n3,4\\n")
        ...     table = read_table(path)
        >>> table.columns, table.values.tolist()
        (('a', 'b'), [[1.0, 2.0], [3.0, 4.0]])
    """
    file = TableFile(path, key)
    if file.suffix in _ARRAY_SUFFIXES:
        values = file.array(flatten)
        table = Table(values, default_names(values.shape[1]))
        if not allow_missing:
            check_finite(values, table.columns, file.path, row_place)
        return table
    frame = next(file.parts())
    return Table(file.numbers(frame, allow_missing), tuple(frame.columns))


def read_frame(path: FilePath, like: pd.DataFrame | None = None, ignore: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table of numbers, truth values and names, with missing values.

    A column is numeric if nearly all of its cells are; the others are then mistakes. Numbers with leading zeros that
    repeat, and the categories of a Parquet file, are names.

    Arguments:
        path: A CSV, Parquet, NPY or NPZ file; see :func:`read_table`.
        like: A table whose columns, in their order and types, are wanted. Default: infer the types.
        ignore: Columns to leave out.

    Raises:
        ValueError: If the file cannot be read or has no rows, if it lacks a column of ``like`` or ``ignore``, or if a
            column holds infinite values, dates, lists, complex numbers or a few cells that are not numbers.
    """
    return next(frame_parts(path, like, None, ignore))


def frame_parts(
    path: FilePath, like: pd.DataFrame | None, rows: int | None = _PART_ROWS, ignore: Sequence[str] = ()
) -> Iterator[pd.DataFrame]:
    """Yield the table of :func:`read_frame` in parts of ``rows`` rows, or all rows at once with ``None``.

    Other arguments and errors are those of :func:`read_frame`. Without ``like``, the types of each part are inferred
    from its own cells. NPY and NPZ files come at once.
    """
    file = TableFile(path)
    names = None if like is None else [name for name in like.columns if holds_names(like[name])]
    for frame in file.parts(rows, names):
        columns = {
            name: typed_column(frame[name], None if like is None else like[name], file.path, file.locate)
            for name in _choose(tuple(frame.columns), like, ignore, file.path)
        }
        yield pd.DataFrame(columns).reset_index(drop=True)


def _choose(columns: Sequence[str], like: pd.DataFrame | None, ignore: Sequence[str], path: Path) -> Sequence[str]:
    """Return the columns without ``ignore``, or those of ``like``, which must be among them."""
    unknown = next((name for name in ignore if name not in columns), None)
    if unknown is not None:
        raise ValueError(f"{path}: has no column {unknown!r} to leave out; it has {', '.join(columns[:20])}")
    columns = [name for name in columns if name not in ignore]
    if not columns:
        raise ValueError(f"{path}: no column is left")
    if like is None:
        return columns
    missing = [name for name in like.columns if name not in columns]
    if missing:
        others = ", ".join(name for name in columns if name not in like.columns)
        raise ValueError(
            f"{path}: columns {', '.join(missing)} are missing" + (f"; it has {others} instead" if others else "")
        )
    return list(like.columns)


def raw_parts(path: FilePath, rows: int = _PART_ROWS) -> Iterator[pd.DataFrame]:
    """Yield the parts of :func:`frame_parts` exactly as the file holds them.

    Columns of a CSV file are text, an index included; columns of a Parquet file keep their Arrow types.
    """
    file = TableFile(path)
    if file.suffix == ".parquet":
        for frame in parquet_parts(file.path, rows, types_mapper=pd.ArrowDtype):
            named = [name for name in frame.index.names if name is not None]  # an index that is also a column
            yield frame.reset_index(named).reset_index(drop=True) if named else frame.reset_index(drop=True)
    elif file.suffix in _ARRAY_SUFFIXES:
        yield from frame_parts(path, None, rows)
    else:
        yield from (frame.reset_index(drop=True) for frame in CSVFile(file.path).text_parts(rows))


def check_reserved_columns(path: FilePath, reserved: Sequence[str]) -> None:
    """Check that a table has no column with the name of a column that is to be written beside it."""
    first = next(raw_parts(path, 1), None)
    clash = None if first is None else next((name for name in first.columns if name in reserved), None)
    if clash is not None:
        raise ValueError(f"{path}: has a column {clash!r} already, a name that the output uses; rename it")


def write_table(path: FilePath, values: np.ndarray, columns: Sequence[str] | None = None) -> None:
    """Write numbers as CSV, Parquet or NPY (which keeps no column names), with all their digits.

    An existing file is replaced only when the new one is complete.

    Arguments:
        path: The file; its extension is the format.
        values: Numbers of shape ``(n, D)``.
        columns: D different names. Default: ``x0, x1, ...``.

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
                write(pd.DataFrame(values, columns=pd.Index(names)))


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
def frame_writer(path: FilePath) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Provide a function that appends a part of a table to a file that ends in ``.csv`` or ``.parquet``.

    Missing folders are made. The file appears, or replaces an older one, only when all parts are written. A warning
    tells if all column names of a CSV file are numbers.
    """
    suffix = _suffix(path, tuple(_WRITERS))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, _WRITERS[suffix](temporary) as write:
        yield write


@contextmanager
def _csv_writer(path: Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    with path.open("w", encoding="utf-8", newline="") as file:

        def write(frame: pd.DataFrame) -> None:
            is_first = file.tell() == 0
            if is_first and all(is_number(str(name)) for name in frame.columns):
                warn("all column names are numbers, which CSV readers may take for data")
            frame.to_csv(file, index=False, header=is_first)

        yield write


_WRITERS = {".csv": _csv_writer, ".parquet": parquet_writer}
