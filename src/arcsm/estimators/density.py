"""A density estimator for tables, as scikit-learn has them."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from arcsm._runtime.progress import track
from arcsm.denoise.particle_filter import systematic_resampling
from arcsm.errors import warn
from arcsm.estimators.base import Array, TableEstimator
from arcsm.estimators.column_types import Column, filled, is_missing
from arcsm.estimators.encoder import within_type

_FILLED_AT_ONCE = 256  # rows with gaps
_DRAWN_AT_ONCE, _CANDIDATES = 1_000, 8  # draws given some values; candidates for each


class ScoreDensity(DensityMixin, TableEstimator):
    """The density of a table, by an autoregressive score model with defaults that need no choosing.

    Columns may be continuous (long tails and skew are mapped away, with the slope of the map in the density),
    discrete (made continuous while training), categorical (pandas: names in, names out), constant, or have missing
    values (NaN; the density of a row is then that of what is known of it). Small tables get an ensemble of models, each
    with another order of the columns.

    Arguments:
        n_estimators: Models, each with another order of the columns; ``"auto"``: four below 2,000 rows to train on
            (two beyond 300 columns), two below 20,000, else one, and one for a single column. Time to fit and to score
            grows with them.
        max_steps: Training steps of each; ``"auto"``: 1,000 to 4,000. Fewer where held-out rows say so.
        hidden_features: Units of the layers of the context network; ``"auto"`` by the size of the table.
        validation_fraction: Share of the rows that is held out, to stop training and to choose noise level and plan:
            at least 20 rows or a quarter of them, at most 5,000. Fewer than eight rows serve for both.
        missing: Whether rows to come may have missing values; ``"auto"``: if fitted ones have. Part of the values is
            then hidden while training.
        random_state: Of everything random in fitting, and the default of :meth:`sample`.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        verbose: Show progress bars (on a terminal).

    Attributes:
        columns_: What the columns were taken for.
        ensemble_: The trained models.
        n_features_in_: Number of columns.
        feature_names_in_: Their names, of a frame.

    Example:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).normal(size=(200, 2))
        >>> density = ScoreDensity(max_steps=20, n_estimators=1, random_state=0).fit(rows)
        >>> density.score_samples(rows).shape, density.sample(3).shape
        ((200,), (3, 2))
    """

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit to rows ``(N, D)``, an array or a frame.

        Raises:
            ValueError: for fewer than two rows, infinite values, dates, a column of nothing but missing values or of
                names that hardly repeat, or arguments out of range.
        """
        with self._all_or_nothing():
            self._fit_table(X)
        return self

    def score_samples(self, X: Any) -> Array:
        """Log density of each row in nats and in units of the table, ``(N,)``; of what is known of it.

        A discrete column counts as if each value were spread over its step, so that for integers and names it is a
        probability.

        Raises:
            ValueError: for other columns than were fitted, infinite values, or missing ones where the fitted rows had
                none (unless ``missing=True``). So do all methods that take rows.
        """
        terms = np.nansum(self._contributions(X), -1)
        return np.logaddexp.reduce(terms, 0) - np.log(len(terms))  # type: ignore[no-any-return]

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density of the rows in nats."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> pd.DataFrame | Array:
        """Rows like those that were fitted: a frame if that was one, with its names, types and categories."""
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"n_samples: expected at least 1, got {n_samples}")
        if self.ensemble_ is None:
            return self.columns_.decode(np.zeros((n_samples, 0)))
        drawn = self.ensemble_.sample(n_samples, self._generator(random_state), bool(self.verbose))
        return self.columns_.decode(drawn.double().numpy())

    def cdf(self, X: Any) -> Array:
        """Where each value is in its distribution given the columns before it, ``(N, D)``.

        Within (0, 1), and uniform for continuous columns if the model is right. By the first model, which has the
        columns in their order; constants are 0.5.
        """
        modelled, constants = self._numbers(X)
        found = np.full(constants.shape, 0.5)
        if self.ensemble_ is not None:
            first = self.ensemble_.members[0]
            found[:, self.columns_.modelled] = first.cdf(modelled.to(first.shift), self.ensemble_.level).cpu().numpy()
        return np.clip(found, np.finfo(float).tiny, 1.0 - np.finfo(float).epsneg)  # inside, as :meth:`quantile` wants

    def quantile(self, U: Any) -> pd.DataFrame | Array:
        """The inverse of :meth:`cdf`: values ``(N, D)`` in (0, 1) to rows of the table."""
        check_is_fitted(self)
        U = np.asarray(U, dtype=np.float64)
        if U.ndim != 2 or U.shape[1] != self.n_features_in_:
            raise ValueError(f"U: expected shape (N, {self.n_features_in_}), got {U.shape}")
        if not ((U > 0.0) & (U < 1.0)).all():
            raise ValueError("U: expected values inside (0, 1)")
        if self.ensemble_ is None:
            return self.columns_.decode(np.zeros((len(U), 0)))
        first = self.ensemble_.members[0]
        u = torch.from_numpy(U[:, self.columns_.modelled]).to(first.shift)
        return self.columns_.decode(first.icdf(u, self.ensemble_.level).cpu().numpy())

    def impute(self, X: Any, draws: int = 64, random_state: Any = None) -> pd.DataFrame | Array:
        """Rows with their missing values filled: by the mean of continuous columns, the likeliest of discrete ones.

        Arguments:
            X: Rows, with NaN (or what pandas takes for missing).
            draws: Joint draws of the missing values of a row, given all known ones, that are weighed.
            random_state: Of the draws.
        """
        check_is_fitted(self)
        table = self._table(X)
        numbers = self._modelled(self.columns_.encode(table))
        gaps = np.flatnonzero(numbers.isnan().any(1).numpy())
        centres = np.full(numbers.shape, np.nan, dtype=object)
        generator = self._generator(random_state)
        with track("filling", len(gaps), bool(self.verbose)) as advance:
            for start in range(0, len(gaps), _FILLED_AT_ONCE):
                rows = gaps[start : start + _FILLED_AT_ONCE]
                self._fill(numbers[rows], rows, centres, draws, generator)
                advance(len(rows))
        return self._rebuilt(table, self.columns_.decode(numbers.nan_to_num(nan=0.0).numpy()), centres)

    def _fill(
        self, numbers: Tensor, rows: NDArray[np.intp], centres: NDArray[Any], draws: int, generator: torch.Generator
    ) -> None:
        """Put the centres of the draws of missing values, in units of the table, where they belong."""
        if self.ensemble_ is None:
            return
        drawn, weights = (t.double().numpy() for t in self.ensemble_.fill(numbers, draws, generator))
        for m, d in enumerate(self.columns_.modelled):
            kind = self.columns_.kinds[d]
            for place in np.flatnonzero(numbers[:, m].isnan().numpy()):
                centres[rows[place], m] = _centre(kind, drawn[place, :, m], weights[place])

    def conditional(self, columns: Any, values: Any, draws: int = 64, random_state: Any = None) -> pd.DataFrame | Array:
        """Draws of whole rows whose ``columns`` have given ``values``.

        Arguments:
            columns: Names (of a frame) or numbers of columns.
            values: One for each of them.
            draws: Number of rows, chosen by their weights among eight times as many: one is drawn twice where its
                weight says so.
            random_state: Of the draws.

        Raises:
            ValueError: for unknown or repeated columns, and for values that a discrete, named or constant column did
                not have, or that are farther out than the range of the fitted ones and as much again.
        """
        check_is_fitted(self)
        if draws < 1:
            raise ValueError(f"draws: expected at least 1, got {draws}")
        columns, values = list(columns), list(values)
        names = list(range(self.n_features_in_) if self.columns_.names is None else self.columns_.names)
        unknown = [column for column in columns if column not in names]
        if unknown:
            raise ValueError(f"columns: unknown {', '.join(map(str, unknown))}; known: {', '.join(map(str, names))}")
        twice = [column for column in columns if columns.count(column) > 1 or names.count(column) > 1]
        if twice or len(columns) != len(values):
            told = f"{twice[0]!r} more than once" if twice else f"{len(columns)} for {len(values)} values"
            raise ValueError(f"columns: expected each once and one for every value, got {told}")
        numbers = np.full((1, len(names)), np.nan)
        for column, value in zip(columns, values, strict=True):
            numbers[:, names.index(column)] = number_of(self.columns_.kinds[names.index(column)], column, value)
        if self.ensemble_ is None:
            return self.columns_.decode(np.zeros((draws, 0)))
        generator = self._generator(random_state)
        rows = self.columns_.decode(self._drawn_given(self._modelled(numbers), draws, generator).double().numpy())
        for column, value in zip(columns, values, strict=True):  # to the letter, where the map there and back rounds
            if isinstance(rows, pd.DataFrame):
                given, dtype = np.full(draws, value, dtype=object), rows[column].dtype
                rows[column] = pd.Series(within_type(given, dtype), index=rows.index).astype(dtype)
            else:
                rows[:, column] = value
        return rows

    def _drawn_given(self, known: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Draws of the missing numbers of one row, ``(draws, M)``, a part at a time."""
        assert self.ensemble_ is not None
        parts, effective = [], 0.0
        with track("drawing", draws, bool(self.verbose)) as advance:
            for start in range(0, draws, _DRAWN_AT_ONCE):
                count = min(_DRAWN_AT_ONCE, draws - start)
                candidates, weights = self.ensemble_.fill(known, _CANDIDATES * count, generator)
                by = _on_cpu(generator)
                chosen = systematic_resampling(weights[:1], by, count)[0]
                parts.append(candidates[0, chosen[torch.randperm(count, generator=by)]])
                effective += 1.0 / float(weights[0].square().sum())
                advance(count)
        if effective < 0.5 * draws:
            warn(
                f"the draws are about {math.ceil(effective)} different ones, some of them many times: few rows of the "
                "models fit what is given"
            )
        return torch.cat(parts)

    def _rebuilt(self, table: Any, values: Any, centres: NDArray[Any]) -> pd.DataFrame | Array:
        """The table with what was missing filled; what was there stays as it was."""
        place = {d: m for m, d in enumerate(self.columns_.modelled)}
        constant = np.asarray(values, dtype=object)
        frame = table if isinstance(table, pd.DataFrame) else pd.DataFrame(table)
        columns = {}
        for d in range(frame.shape[1]):
            column = frame.iloc[:, d]
            missing = column.isna().to_numpy()
            if missing.any():
                fillings = centres[missing, place[d]] if d in place else constant[missing, d]
                dtype = None if self.columns_.dtypes is None else self.columns_.dtypes[d]
                column = _filled(column, missing, fillings, dtype)
            columns[d] = column
        filled = pd.DataFrame(columns, index=frame.index)
        filled.columns = frame.columns
        return filled if isinstance(table, pd.DataFrame) else filled.to_numpy(dtype=np.float64)

    def _generator(self, random_state: Any) -> torch.Generator:
        random = check_random_state(self.random_state if random_state is None else random_state)
        device = self.ensemble_.members[0].shift.device if self.ensemble_ is not None else "cpu"
        return torch.Generator(device).manual_seed(int(random.randint(2**31 - 1)))


def _centre(kind: Column, drawn: Array, weights: Array) -> Any:
    """The mean of the draws ``(K,)`` of a value, in units of the table; the likeliest of a discrete one."""
    values = kind.decode(drawn)
    if not kind.discrete:
        return float(values.astype(float) @ weights)
    places = np.unique(np.rint(kind.encode(values)), return_inverse=True)[1]
    likeliest = int(np.bincount(places, weights).argmax())
    return values[int(np.flatnonzero(places == likeliest)[0])]


def number_of(kind: Column, name: Any, value: Any) -> float:
    """What a value of a column is to the model.

    Raises:
        ValueError: where the column cannot have it.
    """
    number = math.nan if is_missing(value) else float(kind.encode(filled(1, value))[0])
    if math.isnan(number) or not kind.has(number, value):
        raise ValueError(f"values: {name!r} was never {value!r}, nor near it, among the fitted rows")
    return number


def _filled(column: pd.Series, missing: NDArray[np.bool_], fillings: NDArray[Any], dtype: Any) -> pd.Series:
    """A column with its missing values filled, in the first type that leaves the others as they are.

    That is the type that was fitted, or the column's own, or else that of objects.
    """
    cells = np.array(column.astype(object), dtype=object)
    known = cells[~missing]
    for one in (dtype, column.dtype):
        if one is None:
            continue
        cells[missing] = within_type(fillings, one)
        if isinstance(one, pd.CategoricalDtype) and not set(cells) <= set(one.categories):
            continue
        try:
            typed = pd.Series(cells, index=column.index).astype(one)
        except (TypeError, ValueError, OverflowError):
            continue
        same = np.asarray(typed[~missing].astype(object) == known)
        if bool(same.all()) and not bool(typed.isna().any()):
            return typed
    cells[missing] = fillings
    return pd.Series(cells, index=column.index)


def _on_cpu(generator: torch.Generator) -> torch.Generator:
    """A generator for what is drawn on the processor, its seed by the one on the device."""
    if generator.device.type == "cpu":
        return generator
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator, device=generator.device))
    return torch.Generator().manual_seed(seed)
