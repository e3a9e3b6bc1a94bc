"""Columns of a table as a density model wants them: numbers without steps, with one scale and no long tails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from arcsm.errors import warn
from arcsm.estimators.column_types import Categories, Column, Constant, Grid, Numbers, Values, column_of


@dataclass(frozen=True)
class Columns:
    """All columns of a table.

    Attributes:
        kinds: One for each column.
        dtypes: Of the columns of a frame; ``None`` for an array.
        names: Of the columns of a frame; ``None`` for an array.
    """

    kinds: tuple[Column, ...]
    dtypes: tuple[Any, ...] | None = None
    names: tuple[Any, ...] | None = None

    @classmethod
    def of(cls, table: pd.DataFrame | NDArray[np.float64]) -> Columns:
        """The columns of training rows."""
        if isinstance(table, pd.DataFrame):
            kinds = [column_of(_values(table, d), is_categorical(table.dtypes.iloc[d])) for d in range(table.shape[1])]
            return cls(tuple(kinds), tuple(table.dtypes), tuple(table.columns))
        return cls(tuple(column_of(table[:, d], categorical=False) for d in range(table.shape[1])))

    @property
    def modelled(self) -> list[int]:
        """Numbers of the columns that a model sees."""
        return [d for d, kind in enumerate(self.kinds) if not isinstance(kind, Constant)]

    @property
    def widths(self) -> list[float]:
        """Of the levels of the modelled columns, as numbers: 1 for discrete ones, else 0."""
        return [float(self.kinds[d].discrete) for d in self.modelled]

    def encode(self, table: pd.DataFrame | NDArray[np.float64]) -> Numbers:
        """Rows of the table as numbers, ``(N, D)``, constant columns included."""
        own = []
        for d, kind in enumerate(self.kinds):
            values = _values(table, d)
            own.append(kind.encode(values))
            if isinstance(kind, Categories) and kind.are_of_another_type(values):
                name = d if self.names is None else self.names[d]
                warn(
                    f"column {name!r}: no value was seen when fitting, {type(kind.names[0]).__name__}s then and "
                    f"{type(values[~np.asarray(pd.isna(values), dtype=bool)][0]).__name__}s now"
                )
        return np.stack(own, 1)

    def decode(self, numbers: Numbers) -> pd.DataFrame | NDArray[np.float64]:
        """Numbers of the modelled columns ``(N, M)`` as rows of a table like the one that was fitted.

        A column with missing values gets a type that can hold them.
        """
        place = {d: m for m, d in enumerate(self.modelled)}
        own: list[Values] = [
            kind.decode(numbers[:, place[d]] if d in place else np.zeros(len(numbers)))
            for d, kind in enumerate(self.kinds)
        ]
        if self.names is None or self.dtypes is None:
            return np.stack([values.astype(float) for values in own], 1)
        series = [_series(values, dtype) for values, dtype in zip(own, self.dtypes, strict=True)]
        frame = pd.DataFrame(dict(enumerate(series)))
        frame.columns = pd.Index(self.names)
        return frame

    def log_slopes(self, numbers: Numbers, of_maps: bool = True) -> Numbers:
        """Log slopes of the modelled columns, ``(N, M)``; 0 where a value is missing.

        Without those of numbers, where ``of_maps`` is false: they depend on the units of the table.
        """
        counted = [of_maps or isinstance(self.kinds[d], Categories) for d in self.modelled]
        chosen = [
            self.kinds[d].log_slope(numbers[:, m]) if counted[m] else np.zeros(len(numbers))
            for m, d in enumerate(self.modelled)
        ]
        found = np.stack(chosen, 1) if chosen else np.zeros((len(numbers), 0))
        return np.where(np.isnan(numbers), 0.0, found)


def _values(table: pd.DataFrame | NDArray[np.float64], d: int) -> Values:
    """A column as an array: of floats, NaN where missing, or of names."""
    if not isinstance(table, pd.DataFrame):
        return table[:, d]
    column = table.iloc[:, d]
    if is_categorical(column.dtype):
        return np.asarray(column.astype(object))
    return column.to_numpy(dtype=float, na_value=np.nan)


def _series(values: Values, dtype: Any) -> pd.Series:
    missing = np.asarray(pd.isna(values), dtype=bool).any()
    if missing and (pd.api.types.is_integer_dtype(dtype) or pd.api.types.is_bool_dtype(dtype)):
        return pd.Series(values)
    return pd.Series(within_type(values, dtype)).astype(dtype)


def within_type(values: Values, dtype: Any) -> Values:
    """Values as a type can hold them: within its range, and whole where it is one of whole numbers."""
    kind: Any = dtype.subtype if isinstance(dtype, pd.SparseDtype) else getattr(dtype, "numpy_dtype", dtype)
    if isinstance(kind, np.dtype) and kind.kind == "f":
        return np.clip(values.astype(float), np.finfo(kind).min, np.finfo(kind).max)
    if not pd.api.types.is_integer_dtype(kind):
        return values
    limits = np.iinfo(kind)
    low, high = float(limits.min), float(limits.max)
    high = high if int(high) <= limits.max else math.nextafter(high, 0.0)  # 2**63 - 1 is no double
    return np.clip(np.rint(values.astype(float)), low, high).astype(kind)


def is_categorical(dtype: Any) -> bool:
    """Whether a column of a frame holds names and not numbers."""
    return not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype)


def describe(kinds: Sequence[Column]) -> str:
    """How many columns were taken for what, for people."""
    words = {Constant: "constant", Categories: "of names", Grid: "discrete"}
    found = [words.get(type(kind), "continuous") for kind in kinds]
    counts = [f"{found.count(word)} {word}" for word in dict.fromkeys(found)]
    return f"{len(found)} columns: {', '.join(counts)}"
