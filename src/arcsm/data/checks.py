"""Checks of tables: column names, widths, finite values, and values that single precision can hold."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np

from arcsm._runtime.files import FilePath

_MAX_COLUMNS = 100_000
_MAX_SIZE = 1e30  # absolute value; its inverse is the smallest one
_MIN_DEVIATION_SPACINGS = 1e3  # standard deviation, in spacings of single precision at the column's values


def check_width(columns: int, source: FilePath) -> None:
    """Check that a table has at least one column and not so many that it must be transposed."""
    if columns == 0:
        raise ValueError(f"{source}: expected at least one column, got none")
    if columns > _MAX_COLUMNS:
        raise ValueError(f"{source}: expected at most {_MAX_COLUMNS:,} columns, got {columns:,}; is it transposed?")


def check_unique(names: Sequence[str], source: FilePath, hint: str = "") -> None:
    """Check that column names differ."""
    if len(set(names)) < len(names):
        repeated = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(f"{source}: expected different column names, got {repeated!r} more than once{hint}")


def missing_columns(names: Sequence[str]) -> str:
    """Return that columns are missing in words.

    Example:
        >>> missing_columns(["a"]), missing_columns(["a", "b"])
        ('column a is missing', 'columns a, b are missing')
    """
    return f"column {names[0]} is missing" if len(names) == 1 else f"columns {', '.join(names)} are missing"


def check_column_names(names: Sequence[str], count: int) -> None:
    """Check that there are ``count`` different column names."""
    if len(names) != count:
        raise ValueError(f"columns: expected {count} column names, got {len(names)}")
    check_unique(names, "columns")


def check_finite(values: np.ndarray, columns: Sequence[str], source: FilePath, locate: Callable[[int], str]) -> None:
    """Check that all values, rows ``(n, D)``, are finite; ``locate`` returns the place of a row in the file."""
    wrong = ~np.isfinite(values)
    if wrong.any():
        row, column = (int(place) for place in np.unravel_index(int(wrong.argmax()), wrong.shape))
        raise ValueError(
            f"{source}: expected finite numbers, got {int(wrong.sum())} missing or infinite, the first at "
            f"{locate(row)}, column {columns[column]!r}: {values[row, column]}"
            + ("; `arcsm impute` fills missing values" if np.isnan(values[wrong]).any() else "")
        )


def check_precision(values: np.ndarray, columns: Sequence[str], source: FilePath) -> None:
    """Check that single precision, in which models compute, can hold the values of each column and tell them apart."""
    if not len(values):
        return
    with np.errstate(over="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # columns of missing values only
        deviation, mean = (np.asarray(f(values, 0, dtype=np.float64)) for f in (np.nanstd, np.nanmean))
        size = np.nanmax(np.abs(values), 0)
    check_spread(deviation, mean, size, columns, source)


def check_spread(
    deviation: np.ndarray, mean: np.ndarray, size: np.ndarray, columns: Sequence[str], source: FilePath
) -> None:
    """Check as :func:`check_precision`, by standard deviations, means and largest absolute values, each ``(D,)``."""
    beyond = (size > _MAX_SIZE) | ((size > 0.0) & (size < 1.0 / _MAX_SIZE))
    if beyond.any():
        d = int(beyond.argmax())
        raise ValueError(
            f"{source}: column {columns[d]!r} has values as {'large' if size[d] > 1.0 else 'small'} as {size[d]:.2g}, "
            "out of the range of single precision; rescale the column first"
        )
    coarse = (deviation > 0.0) & (deviation < _MIN_DEVIATION_SPACINGS * float(np.finfo(np.float32).eps) * size)
    if coarse.any():
        d = int(coarse.argmax())
        raise ValueError(
            f"{source}: column {columns[d]!r} varies by {deviation[d]:.2g} around {mean[d]:.6g}, too little for "
            f"single precision; subtract {mean[d]:.6g} from it first"
        )
