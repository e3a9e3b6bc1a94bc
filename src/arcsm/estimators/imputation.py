"""Missing values filled from draws: multiple imputations, and the best single value."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from arcsm.estimators.column_types import Array, Categories, Column
from arcsm.estimators.encoder import Columns, Table, clip_to_dtype
from arcsm.estimators.native_frames import filled_native, is_native
from arcsm.estimators.times import Times, counted

Estimate = Literal["mean", "median", "mode", "draw"]
ESTIMATES: tuple[str, ...] = get_args(Estimate)


def point_estimates(kind: Column, numbers: Array, estimate: Estimate) -> NDArray[Any]:
    """Return the estimate of the values of a column, in units of the table, from draws of their numbers ``(N, K)``.

    A draw is the first one. Mean and median minimise the expected squared and absolute error in units of the table, the
    mode the probability of an error. Categories have a mode only. Medians and modes of discrete columns, and means of
    times, are values that the column can have; the mean of numbers lies between such values.
    """
    if estimate == "draw":
        return np.asarray(kind.decode(numbers[:, 0]))
    if isinstance(kind, Categories) or (estimate == "mode" and kind.discrete):
        return np.asarray(kind.decode(_most_frequent(np.rint(numbers))))
    scale = counted(kind)
    values = np.asarray(scale.decode(numbers.flatten()), dtype=float).reshape(numbers.shape)
    if estimate == "mode":
        centre = _half_sample_modes(values)
    elif estimate == "median":
        centre = np.median(values, 1)
    else:
        centre = np.clip(values.mean(1), values.min(1), values.max(1))  # equal draws have exactly this mean
        if not isinstance(kind, Times):
            return centre
    return np.asarray(kind.decode(scale.nearest(centre)))


def _most_frequent(numbers: Array) -> Array:
    """Return the most frequent number of each row ``(N, K)``; the smallest of several."""
    ordered = np.sort(numbers, 1)
    starts = np.concatenate([np.ones((len(ordered), 1), dtype=bool), np.diff(ordered) > 0], 1)
    places = np.arange(ordered.shape[1])
    run = places - np.maximum.accumulate(np.where(starts, places, 0), 1)  # how many equal numbers come before
    return ordered[np.arange(len(ordered)), run.argmax(1)]


def _half_sample_modes(values: Array) -> Array:
    """Return the half-sample mode of each row ``(N, K)``: the centre of ever shorter halves of the draws.

    References:
        On a Fast, Robust Estimator of the Mode (Bickel and Frühwirth, 2006)
    """
    ordered = np.sort(values, 1)
    while ordered.shape[1] > 2:
        half = (ordered.shape[1] + 1) // 2
        widths = ordered[:, half - 1 :] - ordered[:, : ordered.shape[1] - half + 1]
        columns = widths.argmin(1)[:, None] + np.arange(half)
        ordered = np.take_along_axis(ordered, columns, 1)
    return ordered.mean(1)


def write_draws(
    fillings: list[NDArray[Any]],
    rows: NDArray[np.intp],
    drawn: Array,
    missing: NDArray[np.bool_],
    columns: Columns,
    estimate: Estimate,
) -> None:
    """Write missing values of some ``rows (R,)`` into each of the fillings ``(N, D)``, in units of the table.

    Several fillings have a draw each, a single one has the estimate.

    Arguments:
        fillings: The filled tables, which change in place.
        rows: The indices of the rows.
        drawn: Draws of the numbers of the modelled columns ``(R, n, M)``.
        missing: Which of these columns are missing, ``(R, M)``.
        columns: The types of the columns.
        estimate: The kind of a single estimate.
    """
    for m, d in enumerate(columns.modelled):
        here, kind = rows[missing[:, m]], columns.kinds[d]
        values = drawn[missing[:, m], :, m]
        if len(fillings) == 1:
            fillings[0][here, d] = point_estimates(kind, values, estimate)
            continue
        for filling, column in zip(fillings, values.T, strict=True):
            filling[here, d] = kind.decode(column)


def filled_table(X: Any, table: Table, fillings: NDArray[Any], dtypes: Sequence[Any] | None) -> Any:
    """Return the rows ``X``, validated in ``table (N, D)``, with their missing values from ``fillings (N, D)``.

    The ``dtypes`` are those of the fitted columns, if they were a data frame.
    """
    frame = pd.DataFrame(table)
    missing = frame.isna().to_numpy()
    columns = {
        d: fill_column(frame.iloc[:, d], fillings[missing[:, d], d], dtype)
        for d, dtype in enumerate(dtypes or (None,) * frame.shape[1])
    }
    filled = pd.DataFrame(columns, index=frame.index).set_axis(frame.columns, axis=1)
    if is_native(X):
        return filled_native(filled, X)
    return filled if isinstance(table, pd.DataFrame) else filled.to_numpy(dtype=np.float64)


def fill_column(column: pd.Series, fillings: NDArray[Any], dtype: Any) -> pd.Series:
    """Fill a column, in the first dtype that keeps the known values: the fitted one, the column's own, or object.

    ``fillings`` are the values of its missing cells.
    """
    missing = column.isna().to_numpy()
    if not missing.any():
        return column
    cells = np.array(column.astype(object), dtype=object)
    for candidate in (dtype, column.dtype):
        if candidate is None:
            continue
        cells[missing] = clip_to_dtype(fillings, candidate)
        if isinstance(candidate, pd.CategoricalDtype) and not set(cells) <= set(candidate.categories):
            continue
        try:
            typed = pd.Series(cells, index=column.index).astype(candidate)
        except (TypeError, ValueError, OverflowError):
            continue
        unchanged = np.asarray(typed[~missing].astype(object) == cells[~missing])
        if bool(unchanged.all()) and not bool(typed.isna().any()):
            return typed
    cells[missing] = fillings
    return pd.Series(cells, index=column.index)
