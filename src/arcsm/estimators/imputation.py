"""Missing values filled from draws: multiple imputations, and the best single value."""

from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from arcsm.estimators.column_types import Array, Categories, Column
from arcsm.estimators.encoder import clip_to_dtype
from arcsm.estimators.times import counted

Estimate = Literal["mean", "median", "mode", "draw"]
ESTIMATES: tuple[str, ...] = get_args(Estimate)


def point_estimates(kind: Column, numbers: Array, estimate: Estimate) -> NDArray[Any]:
    """Return the estimate of the values of a column, in units of the table, from draws of their numbers ``(N, K)``.

    A draw is the first one. Mean and median minimise the expected squared and absolute error in units of the table, the
    mode the probability of an error. Those of discrete columns lie on the grid; categories have a mode only.
    """
    if estimate == "draw":
        return np.asarray(kind.decode(numbers[:, 0]))
    if isinstance(kind, Categories) or (estimate == "mode" and kind.discrete):
        return np.asarray(kind.decode(_most_frequent(np.rint(numbers))))
    scale = counted(kind)
    values = np.asarray(scale.decode(numbers.flatten()), dtype=float).reshape(numbers.shape)
    if estimate == "mode":
        centre = _half_sample_modes(values)
    else:
        centre = values.mean(1) if estimate == "mean" else np.median(values, 1)
    found = scale.encode(centre)
    return np.asarray(kind.decode(np.rint(found) if kind.discrete else found))


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
