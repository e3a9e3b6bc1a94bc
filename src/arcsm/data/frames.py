"""Tables with columns of any kind, from and to files, as pandas frames."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.compute
from pyarrow import parquet

from arcsm._runtime.files import FilePath, atomic_path, existing_file, reading
from arcsm.data.arrays import TABLE_SUFFIXES, named_array, read_table
from arcsm.data.cells import DATES, are_codes, are_dates, as_truth, check_cells, first_spoilt_number, is_of_truth
from arcsm.data.csv_files import (
    MISSING,
    TRUTH,
    are_numbered_names,
    check_lengths,
    coded_columns,
    csv_rows,
    default_columns,
    first_cells,
    is_number,
    labels_rows,
    say_left_out,
)
from arcsm.errors import warn

_NUMERIC = 0.9  # share of a column's values that are numbers, from which on the others are mistakes
_WRITABLE = (".csv", ".parquet")
_AT_A_TIME = 50_000  # rows of a table that is read in parts


def read_frame(path: FilePath, like: pd.DataFrame | None = None, ignore: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table, with its names, gaps and categories.

    Arguments:
        path: ``.csv``, ``.csv.gz``, ``.parquet``, ``.npy`` or ``.npz`` (``tables.npz:left`` for one of several arrays).
            A CSV file without a header gets the names ``x0, x1, ...``; its first row is a header if one of its cells is
            text.
        like: A table with the same columns, whose names, order and types are asked for.
        ignore: Names of columns that are left out.

    Raises:
        ValueError: in one line, for a file that cannot be read or has no rows, a column that is numbers but for a few
            values (the first is named), infinite values, or columns other than those of ``like``.
    """
    parts = list(frame_parts(path, like, None, ignore=ignore))
    return parts[0]


def frame_parts(
    path: FilePath,
    like: pd.DataFrame | None,
    rows: int | None = _AT_A_TIME,
    wanted: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> Iterator[pd.DataFrame]:
    """The table of :func:`read_frame` in parts, for files that memory does not hold.

    Arguments:
        path: As in :func:`read_frame`; ``.npy`` and ``.npz`` come whole.
        like: As in :func:`read_frame`. Without it the types of a part are those of its own values.
        rows: Of each part but the last; ``None`` for all in one.
        wanted: Names of columns: of a table that has them all, the others are left out.
        ignore: Names of columns that are left out.

    Raises:
        ValueError: as :func:`read_frame`, when the part is reached.
    """
    path, key = named_array(path)
    suffix = next((suffix for suffix in TABLE_SUFFIXES if str(path).lower().endswith(suffix)), None)
    if suffix is None:
        raise ValueError(f"{path}: expected one of {', '.join(TABLE_SUFFIXES)}")
    path = existing_file(path)
    first = 0
    for frame in _parts_as_read(path, suffix, like, rows, key):
        if not len(frame) or not len(frame.columns):
            continue
        frame.columns = [str(name) for name in frame.columns]
        frame = _without(frame, ignore, path)
        if like is not None:
            frame = _aligned(frame, like, path)
        elif wanted and set(wanted) <= set(frame.columns):
            frame = frame[list(wanted)].copy()
        for name in frame.columns:
            frame[name] = _column(frame[name], None if like is None else like[name], path, first)
        first += len(frame)
        yield frame.reset_index(drop=True)
    if not first:
        raise ValueError(f"{path}: expected at least one row of data, got none")


def _without(frame: pd.DataFrame, ignore: Sequence[str], path: Path) -> pd.DataFrame:
    unknown = [name for name in ignore if name not in frame.columns]
    if unknown:
        raise ValueError(f"{path}: has no column {unknown[0]!r} to leave out; it has {', '.join(frame.columns[:20])}")
    if ignore and set(ignore) == set(frame.columns):
        raise ValueError(f"{path}: no column is left")
    return frame.drop(columns=list(ignore)) if ignore else frame


def _parts_as_read(
    path: Path, suffix: str, like: pd.DataFrame | None, rows: int | None, key: str | None
) -> Iterator[pd.DataFrame]:
    """The parts as their format gives them."""
    if suffix in (".npy", ".npz"):
        table = read_table(path, key, allow_missing=True)
        yield pd.DataFrame(table.values.astype(np.float64), columns=list(table.columns))
    elif suffix == ".parquet":
        with reading(path):
            if rows is None:
                yield pd.read_parquet(path)
                return
        yield from (batch.to_pandas() for batch in _parquet_batches(path, rows))
    else:
        names = coded_columns(path) if like is None else [name for name in like.columns if _holds_names(like[name])]
        yield from _csv_parts(path, names, rows)


def _parquet_batches(path: Path, rows: int) -> Iterator[Any]:
    with reading(path):
        batches = parquet.ParquetFile(path).iter_batches(batch_size=rows)
    while True:
        with reading(path):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def parts_as_written(path: FilePath, rows: int = _AT_A_TIME) -> Iterator[pd.DataFrame]:
    """The rows of :func:`frame_parts`, part by part, as they are in the file.

    Of CSV files that is text, of Parquet files the file's own types.
    """
    file = existing_file(named_array(path)[0])
    if file.suffix.lower() == ".parquet":
        for batch in _parquet_batches(file, rows):
            if len(batch):
                frame = batch.to_pandas(types_mapper=pd.ArrowDtype)
                named = [name for name in frame.index.names if name is not None]  # an index that is a column, too
                yield frame.reset_index(named).reset_index(drop=True) if named else frame.reset_index(drop=True)
    elif file.name.lower().endswith((".csv", ".csv.gz")):
        for frame in _csv_parts(file, [], rows, as_text=True):
            yield frame.reset_index(drop=True)
    else:
        yield from frame_parts(path, None, rows)


def check_not_taken(path: FilePath, taken: Sequence[str]) -> None:
    """The columns of a table must not have the names of others that are to stand beside them.

    Raises:
        ValueError: where one has.
    """
    first = next(parts_as_written(path, 1), None)
    both = [] if first is None else [name for name in first.columns if name in taken]
    if both:
        raise ValueError(f"{path}: has a column {both[0]!r} already, which is what the result calls its own; rename it")


def as_numbers(column: pd.Series, path: Path, first: int = 0) -> pd.Series:
    """A column of numbers; ``first`` rows of the file came before it.

    Raises:
        ValueError: naming the first value that is none.
    """
    return _column(column, pd.Series(dtype=np.float64), path, first)


def typed_as(path: FilePath, frame: pd.DataFrame) -> pd.DataFrame:
    """Rows in the types that a Parquet file has for their columns, as far as they hold the values."""
    schema = parquet.read_schema(path)
    columns = {}
    for name in frame.columns:
        column = pyarrow.array(frame[name], from_pandas=True)
        kind = schema.field(name).type if name in schema.names else column.type
        with suppress(pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
            column = _as_category(column, path, name) if pyarrow.types.is_dictionary(kind) else column.cast(kind)
        columns[name] = pd.Series(pd.arrays.ArrowExtensionArray(pyarrow.chunked_array([column])), index=frame.index)
    return pd.DataFrame(columns)


def _as_category(column: Any, path: FilePath, name: str) -> Any:
    """Values as places among the categories that a column of a Parquet file has, in their order."""
    before = parquet.read_table(path, columns=[name]).column(name).unify_dictionaries()
    if not before.num_chunks:
        return column.dictionary_encode()
    categories = before.chunk(0).dictionary
    places = pyarrow.compute.index_in(column.cast(categories.type), value_set=categories)
    return pyarrow.DictionaryArray.from_arrays(
        places.cast(before.type.index_type), categories, ordered=before.type.ordered
    )


def write_frame(path: FilePath, frame: pd.DataFrame) -> None:
    """Write a table as ``.csv`` or ``.parquet``, all of it or nothing.

    Raises:
        ValueError: for another suffix.
    """
    with frame_writer(path) as write:
        write(frame)


@contextmanager
def frame_writer(path: FilePath) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Write a table part by part, all of it or nothing: gives what appends a part.

    Raises:
        ValueError: for another suffix than ``.csv`` and ``.parquet``.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITABLE:
        raise ValueError(f"{path}: expected a file name that ends in {', '.join(_WRITABLE)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".csv":
            with temporary.open("w", encoding="utf-8", newline="") as file:

                def write(frame: pd.DataFrame) -> None:
                    if file.tell() == 0 and all(is_number(str(name)) for name in frame.columns):
                        warn(f"{path}: all names of columns are numbers, which readers of CSV may take for data")
                    frame.to_csv(file, index=False, header=file.tell() == 0)

                yield write
            return
        with _ParquetWriter(temporary) as writer:
            yield writer.write


class _ParquetWriter:
    """Appends frames to a Parquet file; the first one decides the types."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: Any = None

    def __enter__(self) -> _ParquetWriter:
        return self

    def write(self, frame: pd.DataFrame) -> None:
        schema = None if self.writer is None else self.writer.schema
        table = pyarrow.Table.from_pandas(frame, schema=schema, preserve_index=False)
        table = table.replace_schema_metadata(None)  # types are those of Arrow, whatever pandas held them in
        if self.writer is None:
            self.writer = parquet.ParquetWriter(self.path, table.schema)
        self.writer.write_table(table)

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()


def _csv_parts(path: Path, names: list[str], rows: int | None, as_text: bool = False) -> Iterator[pd.DataFrame]:
    """A CSV file, with a header where its first row looks like one.

    Columns of ``names`` are read as they are, even where they look like numbers; with ``as_text`` all are, to the
    letter.
    """
    with _csv_errors(path):
        columns, header, labelled = _csv_layout(path, names)
        options: dict[str, Any] = {"header": 0 if header else None, "skipinitialspace": True, "index_col": False}
        options["low_memory"] = False  # or the type of a column would be found for some rows at a time
        if as_text:
            options |= {"dtype": str, "keep_default_na": False, "na_filter": False}
        else:
            places = [place for place, name in enumerate(columns) if name in names]
            options |= {"na_values": ["?"], "dtype": dict.fromkeys(places, object)}
        options["names"] = columns
        if rows is None:
            frame = _strictly(lambda: pd.read_csv(path, **options))
            _check_ends(path, frame)
            yield _without_index(path, frame) if labelled and not as_text else frame
            return
        parts, checked = _strictly(lambda: pd.read_csv(path, chunksize=rows, **options)), as_text
        while (frame := _strictly(lambda: next(parts, None))) is not None:
            checked = checked or _check_ends(path, frame)
            yield frame.iloc[:, 1:] if labelled and not as_text else frame


def _csv_layout(path: Path, names: list[str]) -> tuple[list[str], bool, bool]:
    """The names of a CSV file's columns, whether they are its first row, and whether the first column labels rows."""
    cells = pd.Series(first_cells(path) or [], dtype=str).str.strip()
    _check_separator(path, cells)
    header = _is_header(path, cells, names)
    columns = cells.tolist() if header else list(default_columns(len(cells)))
    labelled = header and labels_rows(path)
    nameless = [place for place, name in enumerate(columns) if not name and (place or not labelled)]
    if nameless:
        raise ValueError(
            f"{path}: column {nameless[0] + 1} has no name; put one above it, or take away the comma that ends each "
            "line"
        )
    if len(set(columns)) < len(columns):
        twice = next(name for index, name in enumerate(columns) if name in columns[:index])
        raise ValueError(
            f"{path}: expected different column names, got {twice!r} more than once (if the first row is data, put "
            "names above it)"
        )
    return columns, header, labelled


@contextmanager
def _csv_errors(path: Path) -> Iterator[None]:
    """Whatever is wrong with a CSV file, in one line."""
    try:
        yield
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{path}: expected at least one row of data, got none") from error
    except pd.errors.ParserWarning as error:
        raise ValueError(f"{path}: has rows of more cells than its first one") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not in UTF-8; save it in that encoding") from error
    except pd.errors.ParserError as error:
        raise ValueError(f"{path}: not a table of comma-separated values ({' '.join(str(error).split())})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read, damaged or not of this format ({error})") from error


def _without_index(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    say_left_out(path)
    return frame.iloc[:, 1:].copy()


def _is_header(path: Path, cells: pd.Series, names: list[str]) -> bool:
    """Whether a first row is names of columns: one of its cells is text. What looks like a value among them is said."""
    numbers = pd.to_numeric(cells, errors="coerce")
    text = numbers.isna() & ~cells.isin(MISSING) & ~cells.isin(TRUTH)
    values = cells[(numbers.notna() & ~cells.str.fullmatch(r"\d+")) | cells.isin(TRUTH)]
    if text.any() and len(values) and not (names and set(names) <= set(cells)) and not _names_numbers(path, text):
        warn(
            f"{path}: its first row was taken for names of columns, though {values.iloc[0]!r} looks like a value; if "
            "it is one, put a row of names above"
        )
    return bool(text.any()) or are_numbered_names(path, cells.tolist())


def _names_numbers(path: Path, text: pd.Series) -> bool:
    """Whether one of the texts in a first row stands above a number: then it can only be a name."""
    _, second = next(islice(csv_rows(path), 1, None), (0, []))
    numbers = pd.to_numeric(pd.Series(second, dtype=str).str.strip(), errors="coerce").notna()
    return bool((numbers & text.reindex(numbers.index, fill_value=False)).any())


def _check_separator(path: Path, cells: pd.Series) -> None:
    """A header of one cell that holds another separator is a table of that one."""
    found = next((mark for mark in (";", "\t", "|") if len(cells) == 1 and mark in cells.iloc[0]), None)
    if found is not None:
        raise ValueError(f"{path}: expected cells separated by commas, but here {found!r} seems to separate them")


def _check_ends(path: Path, frame: pd.DataFrame) -> bool:
    """Where last cells are missing lines may be too short, which pandas does not say; whether that was looked at."""
    suspicious = frame.shape[1] > 1 and bool(frame.iloc[:, -1].isna().any())
    if suspicious:
        check_lengths(path, frame.shape[1])
    return suspicious


def _strictly(read: Callable[[], Any]) -> Any:
    """What is read; rows of more cells than there are columns, which pandas would cut off, are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return read()


def _holds_names(column: pd.Series) -> bool:
    return not pd.api.types.is_numeric_dtype(column.dtype)


def _names(column: pd.Series) -> pd.Series:
    """A column of names; those of categories as text, as they would be in a CSV file."""
    names = column.astype(object)
    return names.map(str, na_action="ignore") if isinstance(column.dtype, pd.CategoricalDtype) else names


def _aligned(frame: pd.DataFrame, like: pd.DataFrame, path: Path) -> pd.DataFrame:
    missing = [name for name in like.columns if name not in frame.columns]
    more = [name for name in frame.columns if name not in like.columns]
    if missing:
        others = f"; it has {', '.join(more)} instead" if more else ""
        raise ValueError(f"{path}: columns {', '.join(missing)} are missing{others}")
    return frame[list(like.columns)].copy()


def _column(column: pd.Series, like: pd.Series | None, path: Path, first: int = 0) -> pd.Series:
    """A column as numbers, truth values or names, whichever it is or ``like`` is; ``first`` rows came before it."""
    check_cells(column, f"{path}: column {column.name!r}")
    is_bool = pd.api.types.is_bool_dtype(column.dtype)
    if is_of_truth(column if like is None else like):
        return column if is_bool else as_truth(column)
    if isinstance(column.dtype, pd.CategoricalDtype) if like is None else _holds_names(like):
        return _names(column)
    if is_bool:
        return column
    if pd.api.types.is_numeric_dtype(column.dtype):
        numbers = column.astype(np.float64) if column.isna().any() else column
        infinite = np.isinf(numbers.to_numpy(dtype=float, na_value=np.nan))
        if infinite.any():
            raise ValueError(f"{path}: column {column.name!r}, row {first + int(infinite.argmax()) + 1}: infinite")
        return numbers
    if like is None and are_codes(column):
        return _names(column)
    numbers = pd.to_numeric(column, errors="coerce")
    known, wrong = column.notna(), numbers.isna() & column.notna()
    if like is not None or (known.any() and wrong.sum() <= (1.0 - _NUMERIC) * known.sum()):
        if wrong.any():
            raise _expected_a_number(column, int(np.argmax(wrong.to_numpy())), path, first)
        return numbers
    if are_dates(column):
        raise ValueError(f"{path}: column {column.name!r} holds {DATES}")
    place = first_spoilt_number(column)
    if place is not None:
        raise _expected_a_number(column, place, path, first)
    return column.astype(object)


def _expected_a_number(column: pd.Series, place: int, path: Path, first: int) -> ValueError:
    got = str(column.iloc[place])[:40]
    hint = " (numbers are written without commas)" if "," in got else ""
    return ValueError(f"{path}: column {column.name!r}, row {first + place + 1}: expected a number, got {got!r}{hint}")
