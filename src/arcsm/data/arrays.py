"""Tables of numbers from and to files: CSV, Parquet and NumPy."""

import io
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from arcsm._runtime.files import FilePath, atomic_path, existing_file, reading
from arcsm._runtime.memory import check_fits
from arcsm.data.csv_files import check_width, default_columns, is_number, read_csv

__all__ = ["TABLE_SUFFIXES", "Table", "named_array", "npz_key", "npz_names", "read_array", "read_table", "write_table"]

TABLE_SUFFIXES = (".csv", ".csv.gz", ".parquet", ".npy", ".npz")
_WRITABLE = (".csv", ".parquet", ".npy")
_NPZ_KEYS = ("X", "x_train")  # looked for in this order when an archive holds several arrays
_LARGEST = 1e30  # value of a column, and one over the smallest, that single precision can do with
_TOLD_APART = 1e3  # spacings of single precision in a standard deviation, at least


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of numbers with named columns.

    Attributes:
        values: float32 or float64, shape `(n, D)`, in the units of the file.
        columns: The D column names, all different.

    Raises:
        ValueError: `values` is not a two-dimensional float array, or `columns` does not name its columns.
    """

    values: np.ndarray
    columns: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"values: expected a float32 or float64 array of shape (n, D), got {self.values.dtype} of shape "
                f"{self.values.shape}"
            )
        check_columns(self.columns, self.values.shape[1])

    def __len__(self) -> int:
        return len(self.values)


def read_table(path: FilePath, key: str | None = None, *, flatten: bool = False, allow_missing: bool = False) -> Table:
    """Read a table from `.csv`, `.csv.gz`, `.parquet`, `.npy` or `.npz`.

    A CSV file is comma-separated UTF-8; its first row is a header when one of its cells is not a number. Nothing is
    unpickled. Integers and truth values become float64, float16 becomes float32; a one-dimensional array becomes one
    column. Columns without a name are `x0, x1, ...`.

    Args:
        path: The file; `tables.npz:left` names an array, too.
        key: The array to take from an `.npz`. By default its only array, or else `X`, or else `x_train`.
        flatten: Turn an array of more than two dimensions into `(n, -1)`.
        allow_missing: Let NaN (and empty cells) and infinities through.

    Raises:
        ValueError: In one line: no such file, unknown extension, damaged or empty file, no rows, cells that are not
            numbers, rows of different lengths, object arrays, too many dimensions, missing or infinite values.
            Places are 1-based: the line of a CSV file, the row otherwise.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "points.csv"
        ...     _ = path.write_text("a,b\\n1,2\\n3,4\\n")
        ...     table = read_table(path)
        >>> table.columns, table.values.tolist()
        (('a', 'b'), [[1.0, 2.0], [3.0, 4.0]])
    """
    path, key = named_array(path, key)
    suffix = _suffix(path, TABLE_SUFFIXES)
    if key is not None and suffix != ".npz":
        raise ValueError(f"key: expected None for a {suffix} file, got {key!r} ({path})")
    path = existing_file(path)
    place: Callable[[int], str] = row_place
    if suffix in (".csv", ".csv.gz"):
        values, columns, place = read_csv(path)
    elif suffix == ".parquet":
        values, columns = _read_parquet(path)
    else:
        values = _as_table(read_array(path, key), path, flatten)
        columns = default_columns(values.shape[1])
    if len(values) == 0:
        raise ValueError(f"{path}: expected at least one row of data, got none")
    check_width(values.shape[1], path)
    if values.shape[1] == 0:
        raise ValueError(f"{path}: expected at least one column, got none")
    if not allow_missing:
        check_finite(values, columns, path, place)
    check_columns(columns, values.shape[1], path)
    return Table(values, columns)


def read_array(path: FilePath, key: str | None = None, *, preferred: Sequence[str] = _NPZ_KEYS) -> np.ndarray:
    """Read one array of numbers, of any shape and with its own dtype, from `.npy` or `.npz`, without unpickling.

    Args:
        path: The file; `tables.npz:left` names an array, too.
        key: The array to take from an `.npz`. By default its only array, or else the first of `preferred` it has.
        preferred: Names of the main array.

    Raises:
        ValueError: In one line: no such file, damaged file, no array `key` (the message lists the names), several
            arrays of which none is preferred, objects or text instead of numbers.
    """
    path, key = named_array(path, key)
    suffix = _suffix(path, (".npy", ".npz"))
    path = existing_file(path)
    if suffix == ".npz":
        chosen = npz_key(path, key, preferred)
        with reading(path):
            archive = zipfile.ZipFile(path)
        with archive:
            check_fits(2 * archive.getinfo(f"{chosen}.npy").file_size, f"{path}[{chosen}]")  # as bytes, as an array
            with reading(path):
                content = archive.read(f"{chosen}.npy")
        return _read_npy(io.BytesIO(content), f"{path}[{chosen}]")
    if key is not None:
        raise ValueError(f"key: expected None for a .npy file, got {key!r} ({path})")
    with path.open("rb") as file:
        return _read_npy(file, str(path))


def write_table(
    path: FilePath, values: np.ndarray, columns: Sequence[str] | None = None, files: Sequence[str] | None = None
) -> None:
    """Write a table as `.csv`, `.parquet` or `.npy` (which keeps no column names), all of it or nothing.

    Numbers are written with all their digits. An existing file is replaced only when the new one is complete.

    Args:
        path: The file; its extension is the format.
        values: Numbers of shape `(n, D)`.
        columns: D different names; `x0, x1, ...` by default.
        files: n names that become a last column, `file` (not in `.npy`, which holds numbers only).

    Raises:
        ValueError: Unknown extension, no such folder, not n file names, `values` not a two-dimensional array of
            numbers, `columns` not D different names, or, in CSV, names that are all numbers and would be read back as
            data.
    """
    suffix = _suffix(path, _WRITABLE)
    if values.ndim != 2 or values.dtype.kind not in "buif":
        raise ValueError(
            f"values: expected numbers of shape (n, D), got {values.dtype} of shape {values.shape} (for {path})"
        )
    names = default_columns(values.shape[1]) if columns is None else tuple(columns)
    check_columns(names, values.shape[1])
    if suffix == ".csv":
        check_names(names)
    frame = pd.DataFrame(values, columns=pd.Index(names))
    if files is not None:
        if len(files) != len(values):
            raise ValueError(f"files: expected {len(values)} names, got {len(files)}")
        frame["file"] = list(files)
    with atomic_path(path) as temporary:
        if suffix == ".csv":
            frame.to_csv(temporary, index=False)
        elif suffix == ".parquet":
            frame.to_parquet(temporary, index=False)
        else:
            np.save(temporary, values, allow_pickle=False)


# --- Parquet ----------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    with reading(path):
        frame = pd.read_parquet(path)
    return frame_numbers(frame, path), tuple(str(name) for name in frame.columns)


def frame_numbers(frame: pd.DataFrame, path: Path, first: int = 0) -> np.ndarray:
    """The values `(n, D)` of columns of numbers, missing ones as NaN.

    Args:
        frame: Rows of a file.
        path: The file.
        first: The place of the first of them within it.

    Raises:
        ValueError: A column is not of numbers.
    """
    for name, dtype in frame.dtypes.items():
        if not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_complex_dtype(dtype):
            present = frame[name].dropna()
            row = first + int(frame[name].notna().to_numpy().argmax()) + 1
            value = repr(present.iloc[0]) if len(present) else "missing values only"
            raise ValueError(f"{path}: row {row}, column {str(name)!r}: expected a number, got {value} ({dtype})")
    single = len(frame.columns) > 0 and all(str(dtype).lower() in ("float16", "float32") for dtype in frame.dtypes)
    return frame.to_numpy(dtype=np.float32 if single else np.float64, na_value=np.nan)


# --- NumPy ------------------------------------------------------------------------------------------------------------


def named_array(path: FilePath, key: str | None = None) -> tuple[Path, str | None]:
    """A file, and the array in it that is asked for: by `key`, or by a path like `tables.npz:left`.

    Raises:
        ValueError: Both name one.

    Example:
        >>> path, key = named_array("tables.npz:left")
        >>> str(path), key
        ('tables.npz', 'left')
    """
    archive, named, name = os.fspath(path).rpartition(".npz:")
    if not named or not name or Path(path).exists():
        return Path(path), key
    if key is not None:
        raise ValueError(f"key: expected none, since {path} names an array already, got {key!r}")
    return Path(f"{archive}.npz"), name


def npz_names(path: FilePath) -> list[str]:
    """The names of the arrays in an `.npz`, in the order of the file.

    Raises:
        ValueError: No such file, not a zip archive, or one without arrays.
    """
    path = existing_file(path)
    with reading(path), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    if not names:
        raise ValueError(f"{path}: expected an archive of arrays, got one without any")
    return names


def npz_key(path: FilePath, key: str | None, preferred: Sequence[str] = _NPZ_KEYS) -> str:
    """`key`, or else the only array of an `.npz`, or else the first of `preferred` it has.

    Raises:
        ValueError: As `npz_names`; no array `key`; or several arrays, none of them preferred.
    """
    names = npz_names(path)
    listing = ", ".join(names)
    if key is not None:
        if key not in names:
            raise ValueError(f"key: expected one of {listing}, got {key!r} ({path})")
        return key
    if len(names) == 1:
        return names[0]
    for name in preferred:
        if name in names:
            return name
    wanted = f"expected one array or one named {' or '.join(preferred)}"
    raise ValueError(f"{path}: {wanted}, got {listing}; name one as in {path}:{names[0]}")


def _read_npy(file: IO[bytes], source: str) -> np.ndarray:
    """One array; only the `.npy` format itself, whose header is checked for objects before any data is read."""
    npy_header(file, source)
    file.seek(0)
    with reading(source):
        array: np.ndarray[Any, Any] = np.load(file, allow_pickle=False)
    return array


def npy_header(file: IO[bytes], source: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array in a `.npy` file.

    Raises:
        ValueError: Another format, or objects or text instead of real numbers.
    """
    with reading(source):
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
    if dtype.hasobject:
        raise ValueError(f"{source}: expected numbers, got pickled Python objects, which are never loaded")
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise ValueError(f"{source}: expected real numbers, got dtype {dtype}")
    return shape, dtype


def _as_table(array: np.ndarray, path: Path, flatten: bool) -> np.ndarray:
    if array.ndim == 0:
        raise ValueError(f"{path}: expected an array of shape (n, D), got a single number")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim > 2:
        if not flatten:
            raise ValueError(f"{path}: expected an array of shape (n, D), got {array.shape} (in Python, flatten=True)")
        array = array.reshape(len(array), int(np.prod(array.shape[1:])))
    single = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    return array.astype(np.float32 if single else np.float64)


# --- checks -----------------------------------------------------------------------------------------------------------


def _suffix(path: FilePath, known: Sequence[str]) -> str:
    name = Path(path).name.lower()
    for suffix in sorted(known, key=len, reverse=True):
        if name.endswith(suffix):
            return suffix
    raise ValueError(f"{path}: expected a file name that ends in {', '.join(known)}")


def check_precision(values: np.ndarray, columns: Sequence[str], source: FilePath) -> None:
    """Models compute in single precision, which must tell the values of a column apart.

    Raises:
        ValueError: which names a column that varies by too little for its size.
    """
    if not len(values):
        return
    with np.errstate(over="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of columns of nothing but missing values
        deviation, middle = (np.asarray(f(values, 0, dtype=np.float64)) for f in (np.nanstd, np.nanmean))
        size = np.nanmax(np.abs(values), 0)
    check_spread(deviation, middle, size, columns, source)


def check_spread(
    deviation: np.ndarray, middle: np.ndarray, size: np.ndarray, columns: Sequence[str], source: FilePath
) -> None:
    """:func:`check_precision` by standard deviations, means and largest absolute values, ``(D,)`` each."""
    single = np.finfo(np.float32)
    beyond = (size > _LARGEST) | ((size > 0.0) & (size < 1.0 / _LARGEST))
    if beyond.any():
        d = int(beyond.argmax())
        raise ValueError(
            f"{source}: column {columns[d]!r} has values as {'large' if size[d] > 1.0 else 'small'} as {size[d]:.2g}, "
            "out of the reach of single precision; divide it by as much first"
        )
    coarse = (deviation > 0.0) & (deviation < _TOLD_APART * float(single.eps) * size)
    if coarse.any():
        d = int(coarse.argmax())
        raise ValueError(
            f"{source}: column {columns[d]!r} varies by {deviation[d]:.2g} around {middle[d]:.6g}, too little for "
            f"single precision; subtract {middle[d]:.6g} from it first"
        )


def check_names(names: Sequence[str]) -> None:
    """The names of a CSV file's columns must not all be numbers.

    Raises:
        ValueError: where they are.
    """
    if all(is_number(name) for name in names):
        raise ValueError(
            f"columns: expected a name that is not a number, or a CSV reader takes {tuple(names)} for data"
        )


def check_columns(columns: Sequence[str], count: int, source: FilePath = "columns") -> None:
    if len(columns) != count:
        raise ValueError(f"{source}: expected {count} column names, got {len(columns)}")
    if len(set(columns)) != count:
        twice = next(name for index, name in enumerate(columns) if name in columns[:index])
        raise ValueError(f"{source}: expected different column names, got {twice!r} more than once")


def row_place(row: int) -> str:
    return f"row {row + 1}"


def check_finite(
    values: np.ndarray, columns: tuple[str, ...], path: Path, place: Callable[[int], str], first: int = 0
) -> None:
    """All values must be finite.

    Args:
        values: Rows `(n, D)` of a file.
        columns: Their names.
        path: The file.
        place: Says in words where a row of the file is.
        first: The number of the first row of `values` within the file.

    Raises:
        ValueError: One is not; the first is named.
    """
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    row, column = np.unravel_index(int(bad.argmax()), bad.shape)
    raise ValueError(
        f"{path}: expected finite numbers, got {int(bad.sum())} missing or infinite, the first at "
        f"{place(first + int(row))}, column {columns[int(column)]!r}: {values[row, column]}"
    )
