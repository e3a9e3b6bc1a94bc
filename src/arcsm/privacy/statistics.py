"""The distribution of each column of a table and the correlations of all, with noise that hides any one row."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import softmax

from arcsm._runtime.progress import Track, track
from arcsm.data.column_types import is_time
from arcsm.privacy.accounting import noise_for
from arcsm.privacy.marginals import (
    STEPS_OF_NUMBERS,
    STEPS_OF_TIMES,
    WEIGHT_OF_NAMES,
    WEIGHT_OF_NUMBERS,
    Names,
    NothingToRelease,
    Numbers,
    release_names,
    release_numbers,
)
from arcsm.privacy.releases import Array, Releases

_OF_ROWS = 0.1  # weight of the number of rows
_SHARE_OF_MOMENTS = 0.4  # of the budget, if there are several columns
_SHARE_OF_RARE = 0.5  # of delta, for values that one row alone has
_SQUARES = 2.0  # for each column, of the units of a row, above which the row is scaled down
_LEAST_SCALE = 0.05  # squared, of the factor by which scaling shrinks units
_LEAST_VARIANCE = 0.02  # of what the columns before leave of a unit
_INTERCEPT_STEPS = 30
_ROWS_AT_A_TIME = 10_000
_MOST_LOGITS = 4_000_000  # of names of all rows, at a time
_LEAST_DRAWN, _MOST_DRAWN = 1_000, 50_000  # rows, at a time
_MICROSECONDS = 1e6  # in a second


@dataclass(frozen=True)
class PrivateStatistics:
    """Statistics of a table that are :math:`(\\epsilon, \\delta)`-differentially private.

    Whoever sees them, and anything that is computed from them, learns nearly the same with any one row as without it:
    the probability of any result changes by at most a factor :math:`e^\\epsilon`, but for :math:`\\delta`. Public, and
    not protected, are the names and the types of the columns.

    Of each column they have the common values and the shares of intervals. Of each pair of columns they have the
    products of normal scores of numbers, and of indicators of names, from rows that are scaled down to a norm that
    bounds the influence of each.

    Example:
        >>> table = pd.DataFrame({"size": np.random.default_rng(0).normal(size=2_000), "kind": ["a", "b"] * 1_000})
        >>> found = PrivateStatistics.release(table, epsilon=1.0, delta=1e-6)
        >>> found.draw(3, np.random.default_rng(0)).shape
        (3, 2)

    References:
        The Algorithmic Foundations of Differential Privacy (Dwork and Roth, 2014)
        Releasing Search Queries and Clicks Privately (Korolova et al., 2009), for the thresholds of rare values

    Attributes:
        rows: The number of rows, with noise.
        columns: The distribution of each column.
        moments: Second moments of the units of all columns, ``(U, U)``.
        ridge: What is added to the variances to solve for noisy moments.
        dtypes: The types of the columns; those of categories hold released names alone.
        cells: For each column, the cells that its released names stand for, such as truth values.
    """

    rows: int
    columns: list[Names | Numbers]
    moments: Array
    ridge: float
    dtypes: pd.Series
    cells: list[dict[str, Any]]

    @classmethod
    def release(
        cls,
        table: pd.DataFrame,
        epsilon: float,
        delta: float,
        random: np.random.Generator | None = None,
        progress: bool = False,
    ) -> Self:
        """Release the statistics of a table ``(N, D)`` of numbers, truth values, texts, dates and times.

        Arguments:
            table: The rows. Two tables are neighbours if one has a row more than the other.
            epsilon: The budget :math:`\\epsilon`: 1 is strong protection, 10 is weak.
            delta: The budget :math:`\\delta`, much less than one over the number of rows.
            random: The source of the noise, which must stay secret. Default: seeded by the operating system.
            progress: Show progress.

        Raises:
            TypeError: If the table is no frame of pandas.
            ValueError: If a budget is out of range, a column has a type that is not supported or an infinite number,
                or no value of a column can be told from the noise.
        """
        check_table(table)
        random = np.random.default_rng() if random is None else random
        with track("private statistics", table.shape[1] + 1, progress) as step:
            return cls._release(table, epsilon, delta, random, step)

    @classmethod
    def _release(
        cls, table: pd.DataFrame, epsilon: float, delta: float, random: np.random.Generator, step: Track
    ) -> Self:
        rare = _SHARE_OF_RARE * delta
        noise = noise_for(epsilon, delta - rare)
        kinds = [_is_name(table.iloc[:, d]) for d in range(table.shape[1])]
        weight = _OF_ROWS + sum(WEIGHT_OF_NAMES if is_name else WEIGHT_OF_NUMBERS for is_name in kinds)
        of_moments = _SHARE_OF_MOMENTS if len(kinds) > 1 else 0.0
        releases = Releases(noise * math.sqrt(weight / (1.0 - of_moments)), weight, random)
        rows = max(1, int(releases.count(np.array(float(len(table))), _OF_ROWS)))
        if delta * rows >= 1.0:
            raise ValueError(
                f"delta: expected much less than one over the rows, about {rows}, got {delta:g}; with more, a row "
                "might be published as it is"
            )
        columns, values, hidden = list[Names | Numbers](), list[NDArray[Any]](), list[Any]()
        for d, is_name in enumerate(kinds):
            column = table.iloc[:, d]
            values.append(_texts(column) if is_name else _numbers(column))
            steps = STEPS_OF_TIMES if is_time(column) else STEPS_OF_NUMBERS
            try:
                columns.append(
                    release_names(values[-1].tolist(), releases, rare / len(kinds))
                    if is_name
                    else release_numbers(values[-1], releases, rare / len(kinds), steps)
                )
            except NothingToRelease:
                hidden.append(table.columns[d])
            step()
        if hidden:
            raise ValueError(
                f"column {hidden[0]!r}{_also(hidden[1:])}: no value is common enough to be told from noise; leave it "
                "out (for a command, --ignore), or use more rows or a larger epsilon"
            )
        moments, ridge = np.eye(len(columns[0].own_moments())), 0.0
        if of_moments:
            noise /= math.sqrt(of_moments)
            moments, ridge = _moments(columns, values, rows, Releases(noise, 1.0, random))
        cells = [
            _cells(table.iloc[:, d], column.names) if isinstance(column, Names) else {}
            for d, column in enumerate(columns)
        ]
        dtypes = [_public_type(dtype, own) for dtype, own in zip(table.dtypes, cells, strict=True)]
        return cls(rows, columns, moments, ridge, pd.Series(dtypes, index=table.columns, dtype=object), cells)

    def draw(self, count: int, random: np.random.Generator, gaps: bool = True, progress: bool = False) -> pd.DataFrame:
        """Draw rows ``(count, D)`` like those of the table; each column depends linearly on those before it.

        Numbers have a normal score with the mean of a linear regression. Names have the probabilities that normal
        distributions of equal covariance, one for each, give them. Both keep the distribution of their column.

        Arguments:
            count: The number of rows.
            random: The source of the draws.
            gaps: Leave out values as often as the table does, independently. Otherwise rows are complete.
            progress: Show progress.
        """
        rows = max(count, _LEAST_DRAWN)  # columns keep their distributions in many rows
        ends = np.linspace(0, rows, 1 + math.ceil(rows / _MOST_DRAWN)).astype(int)
        with track("synthetic rows", rows * len(self.columns), progress) as step:
            parts = [self._values(size, random, step) for size in np.diff(ends)]
        drawn = {}
        for d, column in enumerate(self.columns):
            values = np.concatenate([part[d] for part in parts])[:count]
            missing = random.random(count) < (column.missing if gaps else 0.0)
            drawn[d] = _typed(values, missing, self.dtypes.iloc[d], self.cells[d])
        return pd.DataFrame(drawn).set_axis(self.dtypes.index, axis=1)

    def _values(self, count: int, random: np.random.Generator, step: Track) -> list[NDArray[Any]]:
        """Draw the values of each column, numbers or texts of names ``(count,)``."""
        starts = np.cumsum([0, *(len(column.own_moments()) for column in self.columns)])
        units = np.zeros((count, starts[-1]))
        drawn = list[NDArray[Any]]()
        for d, column in enumerate(self.columns):
            own, before = slice(starts[d], starts[d + 1]), slice(0, starts[d])
            given = units[:, before]
            if isinstance(column, Numbers):
                values: NDArray[Any] = self._draw_numbers(column, given, own.start, random)
            else:
                values = self._draw_names(column, given, own, random)
            units[:, own] = column.units(values)
            drawn.append(values)
            step(count)
        return drawn

    def _covariance(self, before: int) -> Array:
        return self.moments[:before, :before] + self.ridge * np.eye(before)

    def _draw_numbers(self, column: Numbers, given: Array, unit: int, random: np.random.Generator) -> Array:
        z, before = random.normal(size=len(given)), given.shape[1]
        if before:
            slopes = np.linalg.solve(self._covariance(before), self.moments[:before, unit])
            explained = float(slopes @ self.moments[:before, :before] @ slopes)
            z = given @ slopes + z * math.sqrt(max(1.0 - explained, _LEAST_VARIANCE))
        ranks = np.empty(len(z))
        ranks[np.argsort(z)] = np.arange(len(z)) + random.random(len(z))
        return column.quantile(ranks / len(z))

    def _draw_names(self, column: Names, given: Array, own: slice, random: np.random.Generator) -> NDArray[np.object_]:
        before, at_a_time = given.shape[1], max(1_000, _MOST_LOGITS // len(column.shares))
        slopes, intercepts = np.zeros((before, len(column.shares))), np.log(column.shares)
        if before:
            means = np.zeros((before, len(column.shares)))  # of the units given each name
            means[:, : len(column.leading)] = self.moments[:before, own] / np.sqrt(column.leading)
            within = self._covariance(before) - (means * column.shares) @ means.T
            variances, axes = np.linalg.eigh(within)
            slopes = axes @ ((axes.T @ means) / np.maximum(variances, max(self.ridge, _LEAST_VARIANCE))[:, None])
            intercepts = intercepts - 0.5 * (means * slopes).sum(0)
            logits = given[:at_a_time] @ slopes
            for _ in range(_INTERCEPT_STEPS):
                shares = softmax(intercepts + logits, axis=1).mean(0)
                intercepts = intercepts + np.log(column.shares / shares.clip(1e-9))
        chosen = [np.zeros(0, dtype=int)]
        for first in range(0, len(given), at_a_time):
            logits = intercepts + given[first : first + at_a_time] @ slopes
            chosen.append((logits + random.gumbel(size=logits.shape)).argmax(1))
        return np.array(column.names, dtype=object)[np.concatenate(chosen)]


def _moments(
    columns: Sequence[Names | Numbers], values: Sequence[NDArray[Any]], rows: int, releases: Releases
) -> tuple[Array, float]:
    """Release the second moments of units of different columns; return them with those of each, and a ridge."""
    owner = np.repeat(np.arange(len(columns)), [len(column.own_moments()) for column in columns])
    upper, largest = owner[:, None] < owner, math.sqrt(_SQUARES * len(columns))
    products, squares = np.zeros(upper.shape), np.zeros(len(columns))
    for first in range(0, len(values[0]), _ROWS_AT_A_TIME):
        some = slice(first, first + _ROWS_AT_A_TIME)
        units = np.concatenate([column.units(its[some]) for column, its in zip(columns, values, strict=True)], 1)
        units *= np.minimum(1.0, largest / np.linalg.norm(units, axis=1).clip(1e-9))[:, None]
        products += units.T @ units
        squares += np.bincount(owner, np.square(units).sum(0), len(columns))
    # the squares of the released terms of a row sum to half of the square of all its squares
    sums = np.concatenate([products[upper], squares / math.sqrt(2.0)])
    sensitivity = largest**2 / math.sqrt(2.0)
    sums = releases.sums(sums, sensitivity) / rows
    found = np.zeros(upper.shape)
    found[upper] = sums[: -len(columns)]
    scale = np.sqrt([
        _scale(column, square * math.sqrt(2.0)) for column, square in zip(columns, sums[-len(columns) :], strict=True)
    ])[owner]  # fmt: skip
    found = (found + found.T) / np.outer(scale, scale)
    first = 0
    for column in columns:
        own = slice(first, first := first + len(column.own_moments()))
        found[own] = column.own_moments() @ found[own]  # shares sum to one
        found[:, own] = found[own].T
        found[own, own] = column.own_moments()
    variances, axes = np.linalg.eigh(found)
    noise = releases.noise * sensitivity / rows
    return (axes * variances.clip(0.0)) @ axes.T, max(noise * math.sqrt(len(owner)), 1e-3)


def _scale(column: Names | Numbers, square: float) -> float:
    """Return the square of the factor by which missing values and the scaling of rows shrink units of a column.

    ``square`` is the mean square of what is left of them.
    """
    known = 1.0 - column.missing
    kept = square / max(known * float(np.trace(column.own_moments())), 1e-9)
    return max(known**2 * min(kept, 1.0), _LEAST_SCALE)


def check_table(table: pd.DataFrame) -> None:
    """Check that a table is a frame of pandas, with columns that statistics can be released of."""
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"table: expected a pandas DataFrame, got {type(table).__name__}; convert it first")
    for place, name in enumerate(table.columns):
        column = table.iloc[:, place]
        is_supported = column.dtype.kind in "mM" and not isinstance(column.dtype, pd.ArrowDtype)
        if is_time(column) and not is_supported:
            raise ValueError(
                f"column {name!r}: private statistics need dates and durations of pandas (pd.to_datetime), got "
                f"{column.dtype}"
            )
        if not _is_name(column) and np.isinf(_numbers(column)).any():
            raise ValueError(f"column {name!r}: expected finite numbers or missing values, got infinity")


def _is_name(column: pd.Series) -> bool:
    return not is_time(column) and (
        not pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype)
    )


def _texts(column: pd.Series) -> NDArray[np.object_]:
    found = np.empty(len(column), dtype=object)
    found[:] = [None if gap else str(cell) for cell, gap in zip(column.astype(object), column.isna(), strict=True)]
    return found


def _cells(column: pd.Series, names: Sequence[str]) -> dict[str, Any]:
    """Return the cells that names stand for."""
    cells = {str(cell): cell for cell in column.dropna().unique()}
    return {name: cells[name] for name in names}  # in the order of the names, not of the rows


def _public_type(dtype: Any, cells: Mapping[str, Any]) -> Any:
    """Return a type without the categories that are not released."""
    if not isinstance(dtype, pd.CategoricalDtype):
        return dtype
    kept = [category for category in dtype.categories if str(category) in cells]
    return pd.CategoricalDtype(kept, ordered=dtype.ordered)


def _numbers(column: pd.Series) -> Array:
    """Return numbers ``(N,)``, of times in seconds; NaN is missing."""
    if not is_time(column):
        return column.to_numpy(dtype=float, na_value=np.nan)
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    kind: Any = "datetime64[us]" if column.dtype.kind == "M" else "timedelta64[us]"
    whole = column.astype(kind).to_numpy().astype(np.int64)
    return np.where(column.isna(), np.nan, whole / _MICROSECONDS)


def _typed(values: NDArray[Any], missing: NDArray[np.bool_], dtype: Any, cells: Mapping[str, Any]) -> pd.Series:
    """Return values with the type of their column, as far as it can hold them."""
    if cells:
        found = pd.Series(
            [None if gap else cells[name] for name, gap in zip(values, missing, strict=True)], dtype=object
        )
        holds_gaps = not (isinstance(dtype, np.dtype) and dtype.kind == "b")
        return found.astype(dtype) if holds_gaps or not missing.any() else found
    if getattr(dtype, "kind", "") in "mM":
        return _times(values, dtype).mask(pd.Series(missing))
    column = pd.Series(values)
    if pd.api.types.is_integer_dtype(dtype):
        limits = np.iinfo(getattr(dtype, "numpy_dtype", dtype))
        highest = np.nextafter(float(limits.max), 0.0) if limits.bits == 64 else float(limits.max)
        column = column.round().clip(float(limits.min), highest)
        if not missing.any() or not isinstance(dtype, np.dtype):
            return column.astype(dtype).mask(pd.Series(missing))
        return column.mask(pd.Series(missing))
    return column.mask(pd.Series(missing)).astype(dtype)


def _times(seconds: Array, dtype: Any) -> pd.Series:
    """Return times of a type, within its range."""
    unit, kind = getattr(dtype, "unit", None) or np.datetime_data(dtype)[0], dtype.kind
    limit = _MICROSECONDS * (9.2e9 if unit == "ns" else 2e11)  # of nanoseconds, and of years with four digits
    whole = np.rint(seconds * _MICROSECONDS).clip(-limit, limit).astype(np.int64)
    found = pd.Series(whole.view(f"{kind}8[us]"))
    if isinstance(dtype, pd.DatetimeTZDtype):
        found = found.dt.tz_localize("UTC").dt.tz_convert(dtype.tz)
    return found.astype(dtype)


def _also(names: Sequence[Any]) -> str:
    return f" (also {', '.join(map(repr, names))})" if names else ""
