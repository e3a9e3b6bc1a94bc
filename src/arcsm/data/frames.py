"""Tables with columns of any kind, from and to files, as pandas frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from arcsm.data.arrays import TABLE_SUFFIXES, read_table
from arcsm.files import FilePath, atomic_path, existing_file, reading

_NUMERIC = 0.9  # share of a column's values that are numbers, from which on the others are mistakes
_WRITABLE = (".csv", ".parquet")
_EMPTY = ("", "?", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None")


def read_frame(path: FilePath, like: pd.DataFrame | None = None) -> pd.DataFrame:
    """Read a table, with its names, gaps and categories.

    Arguments:
        path: ``.csv``, ``.csv.gz``, ``.parquet``, ``.npy`` or ``.npz``. A CSV file without a header gets the names
            ``x0, x1, ...``.
        like: A table with the same columns, whose names, order and types are asked for.

    Raises:
        ValueError: in one line, for a file that cannot be read or has no rows, a column that is numbers but for a few
            values (the first is named), infinite values, or columns other than those of ``like``.
    """
    suffix = next((suffix for suffix in TABLE_SUFFIXES if str(path).lower().endswith(suffix)), None)
    if suffix is None:
        raise ValueError(f"{path}: expected one of {', '.join(TABLE_SUFFIXES)}")
    path = existing_file(path)
    if suffix in (".npy", ".npz"):
        table = read_table(path, allow_missing=True)
        frame = pd.DataFrame(table.values.astype(np.float64), columns=list(table.columns))
    else:
        with reading(path):
            names = [] if like is None else [name for name in like.columns if _holds_names(like[name])]
            frame = pd.read_parquet(path) if suffix == ".parquet" else _read_csv(path, names)
    if not len(frame) or not len(frame.columns):
        raise ValueError(f"{path}: expected at least one row of data, got none")
    frame.columns = [str(name) for name in frame.columns]
    if like is not None:
        frame = _aligned(frame, like, path)
    for name in frame.columns:
        frame[name] = _column(frame[name], None if like is None else like[name], path)
    return frame


def write_frame(path: FilePath, frame: pd.DataFrame) -> None:
    """Write a table as ``.csv`` or ``.parquet``, all of it or nothing.

    Raises:
        ValueError: for another suffix.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITABLE:
        raise ValueError(f"{path}: expected a file name that ends in {', '.join(_WRITABLE)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".csv":
            frame.to_csv(temporary, index=False)
        else:
            frame.to_parquet(temporary, index=False)


def _read_csv(path: Path, names: list[str]) -> pd.DataFrame:
    """A CSV file, whose first row is a header when one of its cells is neither a number nor empty.

    Columns of ``names`` are read as they are, even where they look like numbers.
    """
    try:
        first = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False)
        cells = first.iloc[0].str.strip()
        header = bool((pd.to_numeric(cells, errors="coerce").isna() & ~cells.isin(_EMPTY)).any())
        frame = pd.read_csv(
            path, header=0 if header else None, skipinitialspace=True, na_values=["?"],
            dtype=dict.fromkeys(names, object) if header else None,
        )  # fmt: skip
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{path}: expected at least one row of data, got none") from error
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a table of comma-separated values ({' '.join(str(error).split())})") from error
    if not header:
        frame.columns = pd.Index([f"x{index}" for index in range(frame.shape[1])])
    return frame


def _holds_names(column: pd.Series) -> bool:
    return not pd.api.types.is_numeric_dtype(column.dtype)


def _aligned(frame: pd.DataFrame, like: pd.DataFrame, path: Path) -> pd.DataFrame:
    missing = [name for name in like.columns if name not in frame.columns]
    more = [name for name in frame.columns if name not in like.columns]
    if missing:
        others = f"; it has {', '.join(more)} instead" if more else ""
        raise ValueError(f"{path}: columns {', '.join(missing)} are missing{others}")
    return frame[list(like.columns)].copy()


def _column(column: pd.Series, like: pd.Series | None, path: Path) -> pd.Series:
    """A column as numbers, truth values or names, whichever it is or ``like`` is."""
    if pd.api.types.is_datetime64_any_dtype(column.dtype) or pd.api.types.is_timedelta64_dtype(column.dtype):
        raise ValueError(f"{path}: column {column.name!r} holds dates or times; turn them into numbers, such as days")
    if like is not None and _holds_names(like):
        return column.astype(object)
    if pd.api.types.is_bool_dtype(column.dtype) or pd.api.types.is_numeric_dtype(column.dtype):
        if pd.api.types.is_bool_dtype(column.dtype):
            return column
        numbers = column.astype(np.float64) if column.isna().any() else column
        infinite = np.isinf(numbers.to_numpy(dtype=float, na_value=np.nan))
        if infinite.any():
            raise ValueError(f"{path}: column {column.name!r}, row {int(infinite.argmax()) + 1}: infinite")
        return numbers
    numbers = pd.to_numeric(column, errors="coerce")
    wrong = numbers.isna() & column.notna()
    meant = 1.0 - wrong.sum() / max(1, column.notna().sum())
    asked = (
        like is not None and pd.api.types.is_numeric_dtype(like.dtype) and not pd.api.types.is_bool_dtype(like.dtype)
    )
    if asked or (like is None and meant >= _NUMERIC and column.notna().any()):
        if wrong.any():
            place = int(np.argmax(wrong.to_numpy()))
            got = str(column.iloc[place])[:40]
            raise ValueError(f"{path}: column {column.name!r}, row {place + 1}: expected a number, got {got!r}")
        return numbers
    return column.astype(object)
