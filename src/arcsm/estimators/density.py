"""A density estimator for tables, as scikit-learn has them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from arcsm.estimators.columns import Columns, Constant
from arcsm.estimators.ensemble import Ensemble, Plan
from arcsm.model import resolve_device

Array = NDArray[np.float64]


class _TableEstimator(BaseEstimator):
    """What the estimators share: tables in, an ensemble inside."""

    _smooth = False  # whether it is for ranking rows: more noise, and always the same

    def __init__(
        self,
        n_estimators: int | str = "auto",
        max_steps: int | str = "auto",
        hidden_features: tuple[int, ...] | str = "auto",
        validation_fraction: float = 0.15,
        missing: bool | str = "auto",
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
        verbose: bool = False,
    ) -> None:
        self.n_estimators = n_estimators
        self.max_steps = max_steps
        self.hidden_features = hidden_features
        self.validation_fraction = validation_fraction
        self.missing = missing
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def _fit_table(self, X: Any) -> None:
        """Learn the columns, hold rows out, train the members."""
        table = self._table(X, reset=True)
        if len(table) < 2:
            raise ValueError(f"Expected at least 2 samples to fit, got n_samples = {len(table)}")
        _check_columns(table)
        self.columns_ = Columns.of(table)
        numbers = self.columns_.encode(table)
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31 - 1))
        train, held_out = _split(len(numbers), self.validation_fraction, random)
        self.held_out_rows_ = held_out
        modelled = torch.from_numpy(numbers[:, self.columns_.modelled])
        self.plan_ = self._plan(len(train), modelled)
        self.ensemble_ = None
        if modelled.shape[1]:
            self.ensemble_ = Ensemble.train(
                modelled[train], modelled[held_out], self.columns_.steps, self.plan_, seed,
                str(resolve_device(self.device)), bool(self.verbose), not self._smooth,
            )  # fmt: skip

    def _plan(self, rows: int, modelled: Tensor) -> Plan:
        """The plan for the table, with what was asked for."""
        gaps = bool(modelled.isnan().any()) if isinstance(self.missing, str) else self.missing
        plan = Plan.of(rows, max(1, modelled.shape[1]), gaps, self._smooth)
        for name, value in (("n_estimators", self.n_estimators), ("max_steps", self.max_steps)):
            if not isinstance(value, str) and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        return replace(
            plan,
            members=plan.members if isinstance(self.n_estimators, str) else self.n_estimators,
            steps=plan.steps if isinstance(self.max_steps, str) else self.max_steps,
            hidden=plan.hidden if isinstance(self.hidden_features, str) else tuple(self.hidden_features),
        )

    def _table(self, X: Any, reset: bool = False) -> pd.DataFrame | Array:
        """A checked table: frames keep their columns, all else becomes an array of numbers."""
        if isinstance(X, pd.DataFrame):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if not len(X):
                raise ValueError("Found array with 0 sample(s) (shape=(0,)) while a minimum of 1 is required.")
            return _checked_frame(X)
        return validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan")  # type: ignore[no-any-return]

    def _numbers(self, X: Any) -> tuple[Tensor, Array]:
        """Numbers of the modelled columns ``(N, M)``, and log probabilities of the constant ones, ``(N, D)``."""
        check_is_fitted(self)
        numbers = self.columns_.encode(self._table(X))
        constants = np.zeros_like(numbers)
        for d, kind in enumerate(self.columns_.kinds):
            if isinstance(kind, Constant):
                constants[:, d] = kind.log_prob(numbers[:, d])
        modelled = torch.from_numpy(np.ascontiguousarray(numbers[:, self.columns_.modelled]))
        if self.ensemble_ is not None and not self.plan_.missing and bool(modelled.isnan().any()):
            row, column = (int(i) for i in modelled.isnan().nonzero()[0])
            name = self.columns_.modelled[column]
            raise ValueError(
                f"Input X contains NaN: row {row}, column {name}, but no value was missing when fitting; "
                "fit with missing=True, or fill these with impute"
            )
        return modelled, constants

    def _contributions(self, X: Any) -> tuple[Array, Array]:
        """Log densities of every column in data units: of each member ``(E, N, D)``, and the numbers ``(N, M)``."""
        modelled, constants = self._numbers(X)
        members = 1 if self.ensemble_ is None else len(self.ensemble_.members)
        found = np.repeat(constants[None], members, 0)
        if self.ensemble_ is not None:
            slopes = self.columns_.log_slopes(modelled.numpy())
            found[:, :, self.columns_.modelled] += self.ensemble_.terms(modelled).numpy() + slopes
        return found, modelled.numpy()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.non_deterministic = False
        return tags


class ScoreDensity(DensityMixin, _TableEstimator):
    """The density of a table, by an autoregressive score model with defaults that need no choosing.

    Columns may be continuous (long tails and skew are mapped away, with the slope of the map in the density),
    discrete (made continuous while training), categorical (pandas: names in, names out), constant, or have missing
    values (NaN; the density of a row is then that of what is known of it). Small tables get an ensemble of models, each
    with another order of the columns.

    Arguments:
        n_estimators: Models, each with another order of the columns; ``"auto"``: four below 2,000 rows, two below
            20,000, else one. Time to fit and to score grows with them.
        max_steps: Training steps of each; ``"auto"``: 1,000 to 4,000. Fewer where held-out rows say so.
        hidden_features: Units of the layers of the context network; ``"auto"`` by the size of the table.
        validation_fraction: Share of the rows that is held out, to stop training and to choose the noise level.
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
            ValueError: for fewer than two rows, infinite values, or a column of nothing but missing values.
        """
        self._fit_table(X)
        return self

    def score_samples(self, X: Any) -> Array:
        """Log density of each row in nats and in units of the table, ``(N,)``; of what is known of it.

        A discrete column counts as if each value were spread over its step, so that for integers and names it is a
        probability.
        """
        terms = self._contributions(X)[0].sum(-1)
        return np.logaddexp.reduce(terms, 0) - np.log(len(terms))  # type: ignore[no-any-return]

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density of the rows in nats."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> pd.DataFrame | Array:
        """Rows like those that were fitted: a frame if that was one, with its names, types and categories."""
        check_is_fitted(self)
        if self.ensemble_ is None:
            return self.columns_.decode(np.zeros((n_samples, 0)))
        drawn = self.ensemble_.sample(n_samples, self._generator(random_state), bool(self.verbose))
        return self.columns_.decode(drawn.double().numpy())

    def cdf(self, X: Any) -> Array:
        """Where each value is in its distribution given the columns before it, ``(N, D)``.

        Uniform if the model is right. By the first model, which has the columns in their order; constants are 0.5.
        """
        modelled, constants = self._numbers(X)
        found = np.full(constants.shape, 0.5)
        if self.ensemble_ is not None:
            found[:, self.columns_.modelled] = self.ensemble_.members[0].cdf(modelled, self.ensemble_.level).numpy()
        return found

    def quantile(self, U: Any) -> pd.DataFrame | Array:
        """The inverse of :meth:`cdf`: values ``(N, D)`` in (0, 1) to rows of the table."""
        check_is_fitted(self)
        U = np.asarray(U, dtype=np.float64)
        if U.ndim != 2 or U.shape[1] != self.n_features_in_:
            raise ValueError(f"U: expected shape (N, {self.n_features_in_}), got {U.shape}")
        if self.ensemble_ is None:
            return self.columns_.decode(np.zeros((len(U), 0)))
        u = torch.from_numpy(U[:, self.columns_.modelled])
        return self.columns_.decode(self.ensemble_.members[0].icdf(u, self.ensemble_.level).numpy())

    def impute(self, X: Any, draws: int = 64, random_state: Any = None) -> pd.DataFrame | Array:
        """Rows with their missing values filled: by the mean of continuous columns, the likeliest of discrete ones.

        Arguments:
            X: Rows, with NaN (or what pandas takes for missing).
            draws: Joint draws of the missing values of a row, given all known ones, that are weighed.
            random_state: Of the draws.
        """
        table, numbers, drawn, weights = self._filled(X, draws, random_state)
        for m, d in enumerate(self.columns_.modelled):
            missing = np.isnan(numbers[:, d])
            if missing.any():
                centre = _likeliest if self.columns_.kinds[d].step else _mean
                numbers[missing, d] = centre(drawn[missing, :, m], weights[missing], self.columns_.kinds[d].step)
        return self._rebuilt(table, numbers)

    def conditional(self, columns: Any, values: Any, draws: int = 64, random_state: Any = None) -> pd.DataFrame | Array:
        """Draws of whole rows whose ``columns`` have given ``values``.

        Arguments:
            columns: Names (of a frame) or numbers of columns.
            values: One for each of them.
            draws: Number of rows.
            random_state: Of the draws.
        """
        check_is_fitted(self)
        names = list(self.columns_.names or range(self.n_features_in_))
        unknown = [column for column in columns if column not in names]
        if unknown:
            raise ValueError(f"columns: unknown {', '.join(map(str, unknown))}; known: {', '.join(map(str, names))}")
        given = dict(zip(columns, values, strict=True))
        row: Any = pd.DataFrame({name: pd.Series([given.get(name, np.nan)], dtype=object) for name in names})
        if self.columns_.names is None:
            row = row.to_numpy().astype(float)
        else:
            row = row.astype({name: dtype for name, dtype in zip(names, self.columns_.dtypes or (), strict=True)
                              if name in given})  # fmt: skip
        numbers = self.columns_.encode(row)
        generator = self._generator(random_state)
        if self.ensemble_ is None:
            return self.columns_.decode(np.zeros((draws, 0)))
        modelled = torch.from_numpy(numbers[:, self.columns_.modelled])
        candidates, weights = self.ensemble_.fill(modelled, 8 * draws, generator)
        chosen = torch.multinomial(weights[0], draws, replacement=True, generator=generator)
        return self.columns_.decode(candidates[0, chosen].double().numpy())

    def _filled(self, X: Any, draws: int, random_state: Any) -> tuple[Any, Array, Array, Array]:
        """The table, its numbers, and draws of the rows that miss some, with weights."""
        check_is_fitted(self)
        table = self._table(X)
        numbers = self.columns_.encode(table)
        modelled = torch.from_numpy(numbers[:, self.columns_.modelled])
        shape = (len(numbers), max(1, draws), modelled.shape[1])
        drawn, weights = np.zeros(shape), np.full(shape[:2], 1.0 / shape[1])
        gaps = modelled.isnan().any(1)
        if self.ensemble_ is not None and bool(gaps.any()):
            found, own = self.ensemble_.fill(
                modelled[gaps], shape[1], self._generator(random_state), bool(self.verbose)
            )
            drawn = np.zeros((len(numbers), found.shape[1], shape[2]))
            weights = np.full(drawn.shape[:2], 1.0 / found.shape[1])
            drawn[gaps.numpy()], weights[gaps.numpy()] = found.double().numpy(), own.double().numpy()
        return table, numbers, drawn, weights

    def _rebuilt(self, table: Any, numbers: Array) -> pd.DataFrame | Array:
        """The table with what was missing filled from the numbers; what was there stays as it was."""
        filled = self.columns_.decode(numbers[:, self.columns_.modelled])
        if isinstance(table, pd.DataFrame) and isinstance(filled, pd.DataFrame):
            filled.index = table.index
            return table.where(table.notna(), filled)
        return np.where(np.isnan(table), filled, table)

    def _generator(self, random_state: Any) -> torch.Generator:
        random = check_random_state(self.random_state if random_state is None else random_state)
        device = self.ensemble_.members[0].shift.device if self.ensemble_ is not None else "cpu"
        return torch.Generator(device).manual_seed(int(random.randint(2**31 - 1)))


def _mean(drawn: Array, weights: Array, _: float) -> Array:
    """Weighted mean of draws ``(N, K)``, ``(N,)``."""
    return (drawn * weights).sum(1)  # type: ignore[no-any-return]


def _likeliest(drawn: Array, weights: Array, step: float) -> Array:
    """The level with the most weight among draws ``(N, K)``, ``(N,)``."""
    levels = np.rint(drawn / step)
    found = []
    for own, weight in zip(levels, weights, strict=True):
        names, places = np.unique(own, return_inverse=True)
        found.append(names[np.bincount(places, weight).argmax()] * step)
    return np.array(found)


def _split(rows: int, fraction: float, random: np.random.RandomState) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to train on and rows held out; a handful of rows serve as both."""
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"validation_fraction: expected a share between 0 and 1, got {fraction}")
    order = random.permutation(rows)
    held_out = min(max(round(fraction * rows), min(20, rows // 4)), 5_000)
    if held_out < 2:
        return order, order
    return order[held_out:], order[:held_out]


def _check_columns(table: pd.DataFrame | Array) -> None:
    """Every column must have a value."""
    empty = np.asarray(pd.isna(table)).all(0)
    if empty.any():
        place = int(np.argmax(empty))
        name = table.columns[place] if isinstance(table, pd.DataFrame) else place
        raise ValueError(f"column {name!r} holds nothing but missing values; leave it out")


def _checked_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame without infinities.

    Raises:
        ValueError: which names the first.
    """
    for name, column in frame.items():
        if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
            infinite = np.isinf(column.to_numpy(dtype=float, na_value=np.nan))
            if infinite.any():
                raise ValueError(f"Input X contains infinity: column {name!r}, row {int(np.argmax(infinite))}")
    return frame
