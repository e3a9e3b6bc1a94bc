"""Conditions on the columns of a table: a value, a set of values or a range for some of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pandas as pd

from arcsm.estimators.column_types import GRID_TOLERANCE, Array, Categories, Column, Constant, Grid
from arcsm.estimators.continua import Continuous
from arcsm.estimators.encoder import Columns, NoSuchValueError, encode_value
from arcsm.estimators.times import Times, counted, value_text
from arcsm.queries import Constraint, Intervals, Levels

_ROUNDING = 1e-6  # of a step between the values of a discrete column


@dataclass
class Conditions:
    """Conditions on the columns of a table.

    Attributes:
        values: The value of each column that must have one value.
        numbers: Their numbers, ``(D,)``; NaN in the other columns.
        constraints: The sets of numbers of the columns that may have several values, by their index.
        impossible: Whether some column can have none of its values.
    """

    values: dict[Any, Any]
    numbers: Array
    constraints: dict[int, Constraint] = field(default_factory=dict)
    impossible: bool = False

    @classmethod
    def parse(cls, columns: Columns, given: Mapping[Any, Any], argument: str, allow_impossible: bool = False) -> Self:
        """Return the conditions that ``given`` states for columns by name (of a data frame) or index.

        A tuple ``(low, high)`` is a range with its ends; ``None`` leaves an end open. Sets, lists, arrays and other
        collections have several values. All else is one value.

        With ``allow_impossible``, numbers and times that a column cannot have are no error but ``impossible``.

        Raises:
            ValueError: If a column is unknown or not unique, cannot have the value, or has no value in the set or
                range. It names the ``argument``.
        """
        if not isinstance(given, Mapping):
            raise TypeError(f"{argument}: expected a mapping from columns to values, got {type(given).__name__}")
        found, names = cls({}, np.full(len(columns.kinds), np.nan)), columns.labels
        for name, value in given.items():
            d = column_index(columns, name, argument)
            kind = columns.kinds[d]
            may_lack = allow_impossible and not isinstance(kind, Categories)
            try:
                if isinstance(value, tuple):
                    constraint = _range(kind, value, columns.ordered_names(d))
                elif pd.api.types.is_list_like(value) and not isinstance(value, Mapping):
                    constraint = _set(kind, list(value), may_lack)
                else:
                    number, constraint = _number(kind, value, near=not allow_impossible), None
                    found.values[names[d]], found.numbers[d] = value, number
            except NoSuchValueError as error:
                if not may_lack:
                    raise ValueError(f"{argument}: column {name!r} {error}") from error
                found.impossible, constraint = True, None
            except ValueError as error:
                raise ValueError(f"{argument}: column {name!r} {error}") from error
            if constraint is not None:
                found.constraints[d] = constraint
        return found

    def as_constraints(self, columns: Columns, argument: str) -> dict[int, Constraint]:
        """Return all conditions as sets of numbers, by the index of the column.

        Raises:
            ValueError: If a column without levels must have one value, whose probability is zero.
        """
        found = dict(self.constraints)
        for name in self.values:
            d = columns.labels.index(name)
            if isinstance(columns.kinds[d], Constant):
                continue
            try:
                found[d] = _numbers(columns.kinds[d], self.numbers[d : d + 1])
            except ValueError as error:
                raise ValueError(f"{argument}: column {name!r} {error}") from error
        return found


def column_index(columns: Columns, name: Any, argument: str) -> int:
    """Return the index of a column by its name (of a data frame) or index."""
    names = columns.labels
    if names.count(name) != 1:
        listed = ", ".join(map(str, names[:20]))
        problem = "is the name of several columns" if name in names else f"is unknown; known: {listed}"
        raise ValueError(f"{argument}: column {name!r} {problem}")
    return names.index(name)


def _range(kind: Column, ends: tuple[Any, ...], ordered: list[Any] | None) -> Constraint | None:
    """Return the numbers in a range; ``None`` for a constant column whose value lies in it."""
    if len(ends) != 2:
        raise ValueError(f"expects a range (low, high), got {ends}")
    if ordered is not None:
        return _set(kind, _between(ordered, *ends))
    if isinstance(kind, Constant):
        low, high = ends
        try:
            inside = (low is None or low <= kind.value) and (high is None or kind.value <= high)
        except TypeError as error:
            raise ValueError(f"expects ends of a range like {value_text(kind.value)}, got {ends}") from error
        if not inside:
            raise NoSuchValueError(f"has the value {value_text(kind.value)} only")
        return None
    first, last = (_end(kind, end, default) for end, default in zip(ends, (-math.inf, math.inf), strict=True))
    # a file may have rounded the values of a grid, among them those that a range ends with
    rounding = GRID_TOLERANCE if isinstance(kind, Grid) and not kind.whole else _ROUNDING
    if kind.discrete and math.isfinite(first):
        first = math.ceil(first - rounding) - 0.5
    if kind.discrete and math.isfinite(last):
        last = math.floor(last + rounding) + 0.5
    has_steps = kind.discrete or (isinstance(kind, Continuous) and kind.grid is not None)
    if first == last and not has_steps:
        return _numbers(kind, np.array([first]))
    if isinstance(kind, Continuous):
        low, high = (None if end is None else np.array([end], dtype=float) for end in ends)
        first = first if low is None else float(kind.step_end(low, upper=False)[0])
        last = last if high is None else float(kind.step_end(high, upper=True)[0])
    if len(kind.level_numbers):
        inside = kind.level_numbers[(first < kind.level_numbers) & (kind.level_numbers < last)]
        if not len(inside):
            raise NoSuchValueError(f"has no value in the range {_text(ends)}")
        return Levels(inside.astype(int).tolist())
    if not first < last:
        raise ValueError(f"has an empty range {_text(ends)}")
    numbers = counted(kind)
    limits = numbers.encode(np.array(numbers.limits)) if isinstance(numbers, Continuous) else kind.ends
    if limits is not None and (last <= limits[0] or first >= limits[1]):  # draws end there
        end = np.array([last if last <= limits[0] else first])
        if not kind.discrete and kind.spike_of(end).any():
            return _numbers(kind, end)
        raise NoSuchValueError(f"has no value in the range {_text(ends)}")
    return Intervals([(first, last)])


def _between(ordered: list[Any], low: Any, high: Any) -> list[Any]:
    """Return the names from ``low`` to ``high`` of an ordered categorical column."""
    places = {name: place for place, name in enumerate(ordered)}
    for end in (low, high):
        if end is not None and end not in places:
            raise ValueError(f"has no category {end!r}; it has {', '.join(map(str, ordered[:20]))}")
    first, last = 0 if low is None else places[low], len(ordered) - 1 if high is None else places[high]
    if first > last:
        raise ValueError(f"has an empty range {_text((low, high))}")
    return ordered[first : last + 1]


def _end(kind: Column, end: Any, default: float) -> float:
    """Return the number of one end of a range."""
    if end is None:
        return default
    if isinstance(end, float) and math.isinf(end):
        return end
    _check_whole_date(kind, end)
    try:
        number = float(kind.encode(np.array([end], dtype=float if isinstance(end, int | float) else object))[0])
    except (TypeError, ValueError) as error:
        raise ValueError(f"expects ends of a range, got {end!r}") from error
    if math.isnan(number):
        raise ValueError(f"expects ends of a range, got {end!r}; None leaves one open")
    return number


def _number(kind: Column, value: Any, near: bool = False) -> float:
    """Return the number of one value of a column, which may be ``near`` a level of numbers."""
    _check_whole_date(kind, value)
    try:
        return encode_value(kind, value, near)
    except TypeError as error:
        raise ValueError(
            f"expects a value like the fitted ones, a set or list of values, or a range (low, high), got {value!r:.60}"
        ) from error


def _check_whole_date(kind: Column, value: Any) -> None:
    """Check that text names a day: for a month or a year, its first day would be taken."""
    days = kind.scale.days_of(value) if isinstance(kind, Times) and isinstance(value, str) else None
    if days is not None:
        first, last = map(str, days)
        raise ValueError(f"expects a whole date, got {value!r}; all of its days are the range {(first, last)}")


def _set(kind: Column, values: list[Any], may_lack: bool = False) -> Constraint | None:
    """Return the numbers of some values; ``None`` for a constant column with one of the values.

    The column ``may_lack`` some of them.
    """
    if not values:
        raise ValueError("expects at least one value, got none")
    if isinstance(kind, Constant):
        if kind.value not in values:
            raise NoSuchValueError(f"has the value {value_text(kind.value)} only")
        return None
    nested = next((value for value in values if pd.api.types.is_list_like(value)), None)
    if nested is not None:
        raise ValueError(f"expects single values in a set or list, got {nested!r:.60}")
    numbers, problem = list[float](), None
    for value in values:
        try:
            numbers.append(_number(kind, value))
        except NoSuchValueError as error:
            problem = error
            if not may_lack:
                raise
    if problem is not None and not numbers:
        raise problem
    return _numbers(kind, np.array(numbers, dtype=float))


def _numbers(kind: Column, numbers: Array) -> Constraint:
    """Return the constraint of a column to some numbers that have probabilities."""
    if len(kind.level_numbers):
        return Levels(np.rint(numbers).astype(int).tolist())
    if isinstance(kind, Continuous) and kind.grid is not None:
        values = np.unique(kind.decode(numbers))
        steps = (kind.step_end(values, upper) for upper in (False, True))
        return Intervals(list(zip(*steps, strict=True)))
    if not kind.discrete:
        spike = kind.spike_of(numbers)
        if not spike.all():
            raise ValueError("has single values with probability 0, except some frequent ones; give a range")
        chosen = np.unique(kind.spike_numbers[spike - 1])
        return Intervals(list(zip(np.nextafter(chosen, -np.inf), np.nextafter(chosen, np.inf), strict=True)))
    ends = np.unique(np.rint(numbers))
    first, last = np.append(True, np.diff(ends) > 1.0), np.append(np.diff(ends) > 1.0, True)
    return Intervals([(low - 0.5, high + 0.5) for low, high in zip(ends[first], ends[last], strict=True)])


def _text(ends: tuple[Any, ...]) -> str:
    low, high = ("" if end is None else value_text(end) for end in ends)
    return f"({low}, {high})"
