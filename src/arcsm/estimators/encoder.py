"""The encoder of a table: all of its columns as numbers of one scale, without heavy tails."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd

from arcsm.data.column_types import ColumnType, has_time_type, is_time, stray_text
from arcsm.data.row_labels import reason_to_set_aside
from arcsm.errors import is_no_number, warn
from arcsm.estimators.column_inference import DEFAULT_RULES, NumberRules, infer_column
from arcsm.estimators.column_types import (
    GRID_TOLERANCE,
    Array,
    Categories,
    Column,
    Constant,
    Grid,
    Listed,
    Values,
    missing_mask,
    repeat,
)  # fmt: skip
from arcsm.estimators.model_columns import ModelColumns
from arcsm.estimators.times import Times, infer_times, value_text
from arcsm.stored_values import stored

Table = pd.DataFrame | Array


@stored
@dataclass(frozen=True)
class Columns:
    """The columns of a table, and the maps between its rows and numbers."""

    kinds: tuple[Column, ...]
    dtypes: tuple[Any, ...] | None = None  # of a data frame
    names: tuple[Any, ...] | None = None  # of a data frame

    def check_read(self) -> None:
        """Check columns that were read from a file."""
        dtypes = self.dtypes or ()
        fitting = (self.dtypes is None) == (self.names is None)
        fitting &= all(isinstance(dtype, np.dtype | pd.api.extensions.ExtensionDtype) for dtype in dtypes)
        if self.names is not None:
            fitting &= len(self.kinds) == len(dtypes) == len(self.names)
        if not fitting:
            raise ValueError("Columns: expected a type, a dtype and a name for each")

    @classmethod
    def infer(cls, table: Table, rules: NumberRules = DEFAULT_RULES) -> Self:
        """Infer the column types from training rows; see :func:`infer_column`."""
        if isinstance(table, pd.DataFrame):
            kinds = tuple(_infer(table.iloc[:, d], rules) for d in range(table.shape[1]))
            return cls(kinds, tuple(table.dtypes), tuple(table.columns))
        return cls(tuple(infer_column(column, False, rules) for column in table.T))

    @property
    def labels(self) -> list[Any]:
        """The columns' names, or their indices in an array."""
        return list(range(len(self.kinds)) if self.names is None else self.names)

    @property
    def modelled(self) -> list[int]:
        """Indices of the columns that the model sees, which are those that vary."""
        return [d for d, kind in enumerate(self.kinds) if not isinstance(kind, Constant)]

    def ordered_names(self, d: int) -> list[Any] | None:
        """Return the categories of column ``d`` in their order; ``None`` for a column of numbers or times.

        Raises:
            ValueError: If they have no order.
        """
        kind = self.kinds[d]
        if not isinstance(kind, Categories):
            return None
        order = _declared_order(None if self.dtypes is None else self.dtypes[d])
        if order is None:
            raise ValueError("has categories without an order; give a set of values in place of a range")
        known = set(kind.names)
        return [name for name in order if name in known]

    def with_room(self, chosen: Collection[int]) -> Self:
        """Return the columns, some of them with room beyond their ranges; see :meth:`Column.with_room`."""
        kinds = [kind.with_room() if d in chosen else kind for d, kind in enumerate(self.kinds)]
        return replace(self, kinds=tuple(kinds))

    def with_numbers(self, place: int, stem: str, kinds: Sequence[Column]) -> Self:
        """Return the columns with further ones of numbers before a place, with names from a stem."""

        def extended(known: tuple[Any, ...], new: Sequence[Any]) -> tuple[Any, ...]:
            return (*known[:place], *new, *known[place:])

        found = replace(self, kinds=extended(self.kinds, kinds))
        if self.names is None or self.dtypes is None:
            return found
        names, dtypes = unused_names(stem, len(kinds), self.names), [np.dtype(float)] * len(kinds)
        return replace(found, dtypes=extended(self.dtypes, dtypes), names=extended(self.names, names))

    def in_model(self, spikes: bool = True) -> ModelColumns:
        """Return the dimensions of the model that the modelled columns have, with or without those of spikes."""
        return ModelColumns.of_columns([self.kinds[d] for d in self.modelled], spikes)

    def encode(self, table: Table) -> Array:
        """Return the numbers ``(N, D)`` of rows, constant columns included, NaN where a value is missing."""
        encoded = []
        for d, kind in enumerate(self.kinds):
            values = _values(table, d)
            try:
                encoded.append(kind.encode(values))
            except (TypeError, ValueError) as error:  # times for numbers, or the reverse
                raise ValueError(
                    f"column {self.labels[d]!r}: expected values like the fitted ones, got {values[0]!r}"
                ) from error
            if isinstance(kind, Categories) and kind.types_differ(values):
                warn(
                    f"column {self.labels[d]!r}: none of its values occurs in the training rows; expected values of "
                    f"type {type(kind.names[0]).__name__}, got {type(values[~missing_mask(values)][0]).__name__}"
                )
        return np.stack(encoded, 1)

    def decode(self, numbers: Array) -> Table:
        """Return the rows of numbers of the modelled columns ``(N, M)``, in the format of the training table.

        An integer or Boolean column that has missing values gets a dtype that can hold them.
        """
        padded = np.zeros((len(numbers), len(self.kinds)))
        padded[:, self.modelled] = numbers
        columns = [kind.decode(padded[:, d]) for d, kind in enumerate(self.kinds)]
        if self.names is None or self.dtypes is None:
            return np.stack([values.astype(float) for values in columns], 1)
        series = [_series(values, dtype) for values, dtype in zip(columns, self.dtypes, strict=True)]
        return pd.DataFrame(dict(enumerate(series))).set_axis(pd.Index(self.names), axis=1)

    def log_slopes(self, numbers: Array) -> Array:
        """Return log slopes of the modelled columns' maps at numbers ``(N, M)``; 0 where a value is missing."""
        slopes = [self.kinds[d].log_slope(column) for d, column in zip(self.modelled, numbers.T, strict=True)]
        return np.where(np.isnan(numbers), 0.0, np.stack(slopes, 1) if slopes else 0.0)

    def examples(self) -> Table:
        """Return rows that have each name of the columns of names, and the lowest and highest number of the others."""
        numbers = [self.kinds[d].example_numbers for d in self.modelled]
        length = max(map(len, numbers), default=1)
        return self.decode(np.stack([np.resize(one, length) for one in numbers], 1) if numbers else np.zeros((1, 0)))

    def describe(self) -> str:
        """Return how many columns there are of each type, such as "2 columns: 1 continuous, 1 constant"."""
        words = {
            Constant: "constant", Categories: "categorical", Grid: "discrete", Listed: "discrete", Times: "temporal"
        }  # fmt: skip
        types = [words.get(type(kind), "continuous") for kind in self.kinds]
        counts = [f"{types.count(word)} {word}" for word in dict.fromkeys(types)]
        return f"{len(types)} columns: {', '.join(counts)}"

    def names_by_type(self) -> dict[str, list[str]]:
        """Return the names of the columns of each type, such as "whole numbers", in the order of the table."""
        names: dict[str, list[str]] = {}
        for label, kind in zip(self.labels, self.kinds, strict=True):
            names.setdefault(_type_words(kind), []).append(str(label))
        return names

    def without_ignored_values(self, numbers: Array) -> Array:
        """Return rows ``(N, D)`` without the numbers that models ignore; those near a level have the one of the level.

        See :meth:`warn_of_ignored_values`.
        """
        found = numbers.copy()
        for d, kind in enumerate(self.kinds):
            if isinstance(kind, Categories):
                found[found[:, d] >= len(kind.names), d] = np.nan
            elif isinstance(kind, Grid) and len(kind.level_numbers):
                level = kind.rounded(found[:, d])
                is_level = np.isin(level, kind.level_numbers)
                found[:, d] = np.where(is_level, level, kind.near_levels(found[:, d]))
        return found

    def warn_of_ignored_values(self, numbers: Array) -> None:
        """Warn of columns in which rows ``(N, D)`` have unseen names, or numbers far from all levels."""
        for d, kind in enumerate(self.kinds):
            known = numbers[~np.isnan(numbers[:, d]), d]
            reason = None
            if isinstance(kind, Categories) and (known >= len(kind.names)).any():
                reason = "categories that no fitted row has"
            elif isinstance(kind, Grid) and len(kind.level_numbers):
                unseen = np.setdiff1d(kind.rounded(known), kind.level_numbers)
                if np.isnan(kind.near_levels(unseen)).any():
                    reason = "numbers far from its few values in the fitted rows"
            if reason is not None:
                warn(f"column {str(self.labels[d])!r} has {reason}; they count as missing")


def unused_names(stem: str, count: int, taken: Collection[Any]) -> list[str]:
    """Return names of new columns that no other one has."""
    while any(str(name).startswith(stem) for name in taken):
        stem = f"_{stem}"
    return [stem] if count == 1 else [f"{stem}_{t}" for t in range(count)]


def _type_words(kind: Column) -> str:
    if isinstance(kind, Categories):
        return "truth values" if all(isinstance(name, bool | np.bool_) for name in kind.names) else "categorical"
    if isinstance(kind, Grid):
        return "whole numbers" if kind.whole else "numbers in steps"
    return "constant" if isinstance(kind, Constant) else "times" if isinstance(kind, Times) else "numbers"


class NoSuchValueError(ValueError):
    """A column cannot hold a value, or any in a range. The message continues one that names the column."""


def encode_value(kind: Column, value: Any, near: bool = False) -> float:
    """Return the number of one value of a column, which may be ``near`` a level of numbers.

    Raises:
        NoSuchValueError: If the column cannot hold it.
        ValueError: If it is missing, or of another kind.
    """
    missing = bool(pd.api.types.is_scalar(value) and pd.isna(value))
    if missing:
        raise ValueError("expects a value, not a missing one; leave it out if it is unknown")
    try:
        number = float(kind.encode(repeat(value, 1))[0])
    except ValueError as error:
        if is_no_number(error):
            raise ValueError(f"expects a number, got {value!r:.60}") from error
        raise
    if math.isnan(number) or not (kind.allows(number, value) or (near and _is_near(kind, number))):
        shown = value_text(value) if isinstance(kind, Times) else repr(value)
        neighbours = ", or a value near it," if near and isinstance(kind, Grid) else ""
        raise NoSuchValueError(f"does not contain {shown}{neighbours} in the training rows; choose one that occurs")
    return number


def _is_near(kind: Column, number: float) -> bool:
    """Return whether a number on the grid of a column is near a level."""
    if not isinstance(kind, Grid) or abs(number - round(number)) > GRID_TOLERANCE:
        return False
    return not math.isnan(kind.near_levels(np.array([number]))[0])


def _infer(column: pd.Series, rules: NumberRules) -> Column:
    """Infer the type of a column of a data frame; warn if it seems to label the rows."""
    if is_time(column):
        return infer_times(column, rules)
    if not is_categorical(column.dtype) and reason_to_set_aside(column, ColumnType("number")) is not None:
        warn(f"column {column.name!r} has a different whole number in every row; if it labels rows, leave it out")
    categorical = is_categorical(column.dtype)
    stray = stray_text(column) if categorical else None
    if stray is not None:
        warn(
            f"column {column.name!r} has text among numbers, {stray}, so its values count as categories; if they "
            "should be numbers, mend the text and convert the column (pandas.to_numeric)"
        )
    return infer_column(_values(pd.DataFrame(column), 0), categorical, rules, _declared_order(column.dtype) or ())


def _declared_order(dtype: Any) -> list[Any] | None:
    """Return all categories of an ordered categorical dtype."""
    return list(dtype.categories) if isinstance(dtype, pd.CategoricalDtype) and dtype.ordered else None


def _values(table: Table, d: int) -> Values:
    """Return a column as an array of objects if it holds names or times, else of floats with NaN for missing values."""
    if not isinstance(table, pd.DataFrame):
        return table[:, d]
    column = table.iloc[:, d]
    if is_categorical(column.dtype) or has_time_type(column.dtype):
        return np.asarray(column.astype(object))
    return column.to_numpy(dtype=float, na_value=np.nan)


def _series(values: Values, dtype: Any) -> pd.Series:
    if missing_mask(values).any() and (pd.api.types.is_integer_dtype(dtype) or pd.api.types.is_bool_dtype(dtype)):
        return pd.Series(values)
    return pd.Series(clip_to_dtype(values, dtype)).astype(dtype)


def clip_to_dtype(values: Values, dtype: Any) -> Values:
    """Clip numbers to the range of a dtype, and round them if it is an integer dtype."""
    kind: Any = dtype.subtype if isinstance(dtype, pd.SparseDtype) else getattr(dtype, "numpy_dtype", dtype)
    if isinstance(kind, np.dtype) and kind.kind == "f":
        return np.clip(values.astype(float), np.finfo(kind).min, np.finfo(kind).max)
    if not pd.api.types.is_integer_dtype(kind):
        return values
    limits = np.iinfo(kind)
    low, high = float(limits.min), float(limits.max)
    high = high if int(high) <= limits.max else math.nextafter(high, 0.0)  # no double equals 2**63 - 1
    return np.clip(np.rint(values.astype(float)), low, high).astype(kind)


def is_categorical(dtype: Any) -> bool:
    """Return whether a data frame's column of this dtype holds categories rather than numbers."""
    return not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype)
