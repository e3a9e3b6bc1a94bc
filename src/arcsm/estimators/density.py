"""A density estimator for tables with scikit-learn's interface."""

import math
from itertools import combinations
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
from arcsm.denoise import systematic_resampling
from arcsm.errors import warn
from arcsm.estimators.base import TableEstimator
from arcsm.estimators.column_types import Array, Categories, Column
from arcsm.estimators.encoder import clip_to_dtype, encode_value
from arcsm.estimators.level_pairs import LevelPairs
from arcsm.estimators.native_frames import is_native, to_native
from arcsm.estimators.times import Times

_IMPUTED_ROWS_PER_BATCH = 256
_CONDITIONAL_DRAWS_PER_BATCH = 1_000
_CANDIDATES_PER_DRAW = 8


class ScoreDensity(DensityMixin, TableEstimator):
    """The density of a table, by an ensemble of autoregressive score models whose defaults suit most tables.

    Columns may be continuous, discrete, categorical (strings or Booleans in a data frame), temporal (dates, times,
    durations or periods in a data frame) or constant, and may have missing values. Skewed and heavy-tailed columns are
    transformed; the density includes the slope of the transform. Discrete columns are dequantised for training. The
    density of a row with missing values is that of its known values.

    Arguments:
        n_estimators: Number of models, each with a different order of the columns; the time to fit and to score grows
            with it. ``"auto"``: four for fewer than 2,000 training rows (two with more than 300 columns), two for fewer
            than 20,000, else one; one for a single column.
        max_steps: Training steps of each model. ``"auto"``: 1,000 to 4,000 by the size of the table. Training stops
            early if held-out rows no longer improve.
        hidden_features: Units of each layer of the context network. ``"auto"``: by the size of the table.
        validation_fraction: Fraction of rows held out to stop training and to choose the noise level and the
            configuration: at least 20 rows or a quarter of them, at most 5,000. All rows serve for both if there are
            fewer than eight.
        missing: Whether rows may have missing values; training then masks a fraction of the values. ``"auto"``: if the
            fitted rows have any.
        random_state: Randomness of fitting, and the default of the methods that draw.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        verbose: Show progress; see :func:`arcsm.fit`.

    Attributes:
        columns_: The inferred column types.
        config_: The configuration of the models.
        ensemble_: The trained models; ``None`` if all columns are constant.
        held_out_rows_: Indices of the held-out rows.
        level_pairs_: The pairs of levels of discrete and categorical columns that occur together in fitted rows.
        n_features_in_: Number of columns.
        feature_names_in_: Column names, if the table is a data frame with string names.

    Example:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).normal(size=(200, 2))
        >>> density = ScoreDensity(max_steps=20, n_estimators=1, random_state=0).fit(rows)
        >>> density.score_samples(rows).shape, density.sample(3).shape
        ((200,), (3, 2))
    """

    def fit(self, X: Any, y: Any = None, **unsupported: Any) -> Self:
        """Fit the density of rows ``(N, D)``, an array or a data frame (of pandas, polars or pyarrow).

        Results have the library of the rows. Weights of rows are not supported.

        Raises:
            TypeError: If ``sample_weight`` or another argument is given.
            ValueError: If there are fewer than two rows, an argument is out of range, or a column holds infinite
                values, only missing values, or categories that differ in more than half of at least 50 rows.
        """
        self._check_fit_arguments(unsupported)
        with self._unchanged_on_failure():
            numbers = self._fit_table(X)
            self.level_pairs_ = LevelPairs.of_rows(self.columns_, numbers)
        return self

    def score_samples(self, X: Any) -> Array:
        """Return the log density of each row's known values in nats and in units of the table, ``(N,)``.

        The density of a discrete value is its probability divided by the step between values, so that the density of
        integers and of categories is a probability.

        Raises:
            ValueError: If the columns differ from the fitted ones, a value is infinite, or a value is missing although
                no fitted one was (unless ``missing=True``). All methods that take rows raise it.
        """
        by_member = np.nansum(self._contributions(*self.encode_rows(X)), -1)  # (E, N)
        return np.logaddexp.reduce(by_member, 0) - np.log(len(by_member))  # type: ignore[no-any-return]

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean log density of rows in nats."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draw rows, in the format of the fitted table: a data frame keeps its names, dtypes and categories."""
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"n_samples: expected at least 1, got {n_samples}")
        if self.ensemble_ is None:
            return self._decode(np.zeros((n_samples, 0)))
        drawn = self.ensemble_.sample(n_samples, self._generator(random_state), bool(self.verbose))
        return self._decode(drawn.double().numpy())

    def cdf(self, X: Any) -> Array:
        """Return the distribution function of each value given the columns before it, ``(N, D)`` in (0, 1).

        The first model computes it, which has the columns in table order. Values of continuous columns are uniform if
        the model is right; constant columns are 0.5.
        """
        modelled, constants = self.encode_rows(X)
        u = np.full(constants.shape, 0.5)
        if self.ensemble_ is not None:
            first = self.ensemble_.members[0]
            u[:, self.columns_.modelled] = first.cdf(modelled.to(first.shift), self.ensemble_.level).cpu().numpy()
        return np.clip(u, np.finfo(float).tiny, 1.0 - np.finfo(float).epsneg)  # open, as `quantile` needs it

    def quantile(self, U: Any) -> Any:
        """Return the rows whose :meth:`cdf` is ``U``, ``(N, D)`` in (0, 1)."""
        check_is_fitted(self)
        U = np.asarray(U, dtype=np.float64)
        if U.ndim != 2 or U.shape[1] != self.n_features_in_:
            raise ValueError(f"U: expected shape (N, {self.n_features_in_}), got {U.shape}")
        if not ((U > 0.0) & (U < 1.0)).all():
            raise ValueError("U: expected values inside (0, 1)")
        if self.ensemble_ is None:
            return self._decode(np.zeros((len(U), 0)))
        first = self.ensemble_.members[0]
        u = torch.from_numpy(U[:, self.columns_.modelled]).to(first.shift)
        return self._decode(first.icdf(u, self.ensemble_.level).cpu().numpy())

    def impute(self, X: Any, draws: int = 64, random_state: Any = None) -> Any:
        """Fill missing values: with the mean of a numeric column, with the most likely value of a categorical one.

        The mean of a discrete column is rounded to its grid. It has a smaller squared error than the median.

        Arguments:
            X: Rows with missing values (NaN, or what pandas treats as missing).
            draws: Number of weighted joint draws of a row's missing values given its known ones.
            random_state: Randomness of the draws.
        """
        check_is_fitted(self)
        table = self._validated(X)
        numbers = self._clip_modelled(self.columns_.encode(table))
        fillings = np.asarray(self.columns_.decode(numbers.nan_to_num(nan=0.0).numpy()), dtype=object)  # (N, D)
        incomplete = np.flatnonzero(numbers.isnan().any(1).numpy())
        generator = self._generator(random_state)
        starts = range(0, len(incomplete), _IMPUTED_ROWS_PER_BATCH)
        with track("filling", len(incomplete), bool(self.verbose)) as work:
            for rows in work.over((incomplete[start : start + _IMPUTED_ROWS_PER_BATCH] for start in starts), len):
                self._fill_rows(fillings, numbers[rows], rows, draws, generator)
        frame = pd.DataFrame(table)
        dtypes = self.columns_.dtypes or (None,) * frame.shape[1]
        columns = {d: _filled(frame.iloc[:, d], fillings[:, d], dtype) for d, dtype in enumerate(dtypes)}
        filled = pd.DataFrame(columns, index=frame.index).set_axis(frame.columns, axis=1)
        if is_native(X):
            return to_native(filled, X)
        return filled if isinstance(table, pd.DataFrame) else filled.to_numpy(dtype=np.float64)

    def _fill_rows(
        self, fillings: NDArray[Any], numbers: Tensor, rows: NDArray[np.intp], draws: int, generator: torch.Generator
    ) -> None:
        """Write the centre of the draws of each missing value, in units of the table, into ``fillings[rows]``."""
        assert self.ensemble_ is not None  # else no column is modelled, and no row incomplete
        drawn, weights = (t.double().numpy() for t in self.ensemble_.sample_missing(numbers, draws, generator))
        for m, d in enumerate(self.columns_.modelled):
            for place in np.flatnonzero(numbers[:, m].isnan().numpy()):
                fillings[rows[place], d] = _centre(self.columns_.kinds[d], drawn[place, :, m], weights[place])

    def conditional(self, columns: Any, values: Any, draws: int = 64, random_state: Any = None) -> Any:
        """Draw rows given the values of some columns.

        Arguments:
            columns: Names (of a data frame) or indices of the known columns.
            values: The value of each known column.
            draws: Number of rows to draw, by importance resampling from eight times as many candidates. A candidate
                with a large weight may occur more than once.
            random_state: Randomness of the draws.

        Raises:
            ValueError: If a column is unknown or repeated; if a discrete, categorical or constant column never has the
                value; or if the value of a continuous column lies beyond the fitted range by more than its width.

        Warns:
            UserWarning: If two values of discrete or categorical columns never occur together in the fitted rows, or if
                few draws are distinct.
        """
        check_is_fitted(self)
        if draws < 1:
            raise ValueError(f"draws: expected at least 1, got {draws}")
        columns, values, names = list(columns), list(values), self.columns_.labels
        unknown = [column for column in columns if column not in names]
        if unknown:
            raise ValueError(f"columns: unknown {', '.join(map(str, unknown))}; known: {', '.join(map(str, names))}")
        repeated = [column for column in columns if columns.count(column) > 1 or names.count(column) > 1]
        if repeated or len(columns) != len(values):
            got = f"{repeated[0]!r} more than once" if repeated else f"{len(columns)} for {len(values)} values"
            raise ValueError(f"columns: expected each once and one for every value, got {got}")
        numbers = np.full((1, len(names)), np.nan)
        for column, value in zip(columns, values, strict=True):
            numbers[:, names.index(column)] = encode_value(self.columns_.kinds[names.index(column)], column, value)
        self._warn_of_new_pairs(numbers[0], dict(zip(columns, values, strict=True)))
        if self.ensemble_ is None:
            return self._decode(np.zeros((draws, 0)))
        drawn = self._resample_completions(self._clip_modelled(numbers), draws, self._generator(random_state))
        rows = self.columns_.decode(drawn.double().numpy())
        for column, value in zip(columns, values, strict=True):  # exactly, although encoding and decoding rounds
            if isinstance(rows, pd.DataFrame):
                exact, dtype = np.full(draws, value, dtype=object), rows[column].dtype
                rows[column] = pd.Series(clip_to_dtype(exact, dtype), index=rows.index).astype(dtype)
            else:
                rows[:, column] = value
        return self._as_fitted(rows)

    def _warn_of_new_pairs(self, numbers: Array, given: dict[Any, Any]) -> None:
        """Warn if two given values of a row ``(D,)`` never occur together in the fitted rows."""
        pairs, labels = list(combinations(given, 2)), self.columns_.labels
        rows = np.full((len(pairs), len(numbers)), np.nan)
        for row, pair in zip(rows, pairs, strict=True):
            places = [labels.index(column) for column in pair]
            row[places] = numbers[places]
        for pair, unseen in zip(pairs, self.level_pairs_.has_unseen_pair(rows), strict=True):
            if unseen:
                values = " and ".join(f"{column} = {given[column]!r}" for column in pair)
                warn(f"{values} never occur together in the fitted rows; the drawn rows may be impossible")

    def _resample_completions(self, known: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Draw completions of one encoded row ``(1, M)``, ``(draws, M)``."""
        assert self.ensemble_ is not None
        batches, effective = [], 0.0
        counts = [min(_CONDITIONAL_DRAWS_PER_BATCH, draws - i) for i in range(0, draws, _CONDITIONAL_DRAWS_PER_BATCH)]
        with track("drawing", draws, bool(self.verbose)) as work:
            for count in work.over(counts, float):
                candidates, weights = self.ensemble_.sample_missing(known, _CANDIDATES_PER_DRAW * count, generator)
                cpu_generator = _on_cpu(generator)
                chosen = systematic_resampling(weights[:1], cpu_generator, count)[0]
                batches.append(candidates[0, chosen[torch.randperm(count, generator=cpu_generator)]])
                effective += 1.0 / float(weights[0].square().sum())
        if effective < 0.5 * draws:
            warn(
                f"only about {math.ceil(effective)} of the {draws} draws are distinct: few sampled rows "
                "match the given values"
            )
        return torch.cat(batches)

    def _generator(self, random_state: Any) -> torch.Generator:
        random = check_random_state(self.random_state if random_state is None else random_state)
        device = self.ensemble_.members[0].shift.device if self.ensemble_ is not None else "cpu"
        return torch.Generator(device).manual_seed(int(random.randint(2**31 - 1)))


def _centre(kind: Column, drawn: Array, weights: Array) -> Any:
    """Return the centre of weighted draws ``(K,)`` in table units: the most likely category, else the mean."""
    if isinstance(kind, Times):
        return kind.scale.times(np.array([_centre(kind.numbers, drawn, weights)], dtype=float))[0]
    values = kind.decode(drawn)
    if not kind.discrete:
        return float(values.astype(float) @ weights)
    numbers = np.rint(kind.encode(values))
    if isinstance(kind, Categories):
        levels, codes = np.unique(numbers, return_inverse=True)
        return kind.decode(levels[[np.bincount(codes, weights).argmax()]])[0]
    return kind.decode(np.array([numbers @ weights]))[0]  # on the grid


def _filled(column: pd.Series, fillings: NDArray[Any], dtype: Any) -> pd.Series:
    """Fill a column, in the first dtype that keeps the known values: the fitted one, the column's own, or object."""
    missing = column.isna().to_numpy()
    if not missing.any():
        return column
    cells = np.array(column.astype(object), dtype=object)
    for candidate in (dtype, column.dtype):
        if candidate is None:
            continue
        cells[missing] = clip_to_dtype(fillings[missing], candidate)
        if isinstance(candidate, pd.CategoricalDtype) and not set(cells) <= set(candidate.categories):
            continue
        try:
            typed = pd.Series(cells, index=column.index).astype(candidate)
        except (TypeError, ValueError, OverflowError):
            continue
        unchanged = np.asarray(typed[~missing].astype(object) == cells[~missing])
        if bool(unchanged.all()) and not bool(typed.isna().any()):
            return typed
    cells[missing] = fillings[missing]
    return pd.Series(cells, index=column.index)


def _on_cpu(generator: torch.Generator) -> torch.Generator:
    """Return the generator, or one on the CPU that it seeds."""
    if generator.device.type == "cpu":
        return generator
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator, device=generator.device))
    return torch.Generator().manual_seed(seed)
