"""A density estimator for tables with scikit-learn's interface."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import DensityMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from arcsm._runtime.progress import track
from arcsm._runtime.sizes import check_size
from arcsm.errors import warn
from arcsm.estimators import table_draws
from arcsm.estimators.column_types import Array
from arcsm.estimators.conditions import Conditions, column_index
from arcsm.estimators.density_estimator import DensityEstimator
from arcsm.estimators.encoder import clip_to_dtype
from arcsm.estimators.gap_model import GapModel
from arcsm.estimators.imputation import ESTIMATES, Estimate, filled_table, write_draws
from arcsm.estimators.level_pairs import LevelPairs
from arcsm.estimators.recurring_values import RecurringValues, recurring_values
from arcsm.estimators.table_training import several_orders
from arcsm.estimators.times import Times
from arcsm.queries import Constraint

ORDERS = ("mixture", "learned")
_IMPUTED_ROWS_PER_BATCH = 2_048
_ORDER_ROWS = 250  # held-out rows that choose orders
_CANDIDATES, _MAX_CANDIDATE_COLUMNS = 4, 800  # for each order of the mixture; columns of all candidates
_MIXTURE_ROWS = 128  # held-out rows that choose among them
_ORDER_EVALUATIONS = 40  # of the density of these rows, after which the search for an order ends


class Probability(NamedTuple):
    """An estimated probability."""

    value: float
    standard_error: float


class ScoreDensity(DensityMixin, DensityEstimator):
    """The density of a table, by one score model of every order of the columns, whose defaults suit most tables.

    Columns may be continuous, discrete, categorical (strings or Booleans in a data frame), temporal (dates, times,
    durations or periods in a data frame) or constant, and may have missing values. Skewed and heavy-tailed columns are
    transformed; the density includes the slope of the transform. Categories and few-valued discrete columns have a
    probability for each level, other discrete columns are dequantised for training. The density of a row with missing
    values is that of its known values.

    Arguments:
        n_estimators: Number of orders of the columns whose densities are averaged, at most all that there are; the time
            to score grows with it. ``"auto"``: four, or two with more than 300 columns.
        max_steps: Training steps. ``"auto"``: 2,000 to 8,000 by the number of rows.
        hidden_features: Units of each layer of the context network, all equal. ``"auto"``: three layers of 128.
        validation_fraction: Fraction of rows held out to choose the step of the training, the noise level and the
            configuration: at least 20 rows or a quarter of them, at most 5,000. All rows serve for both if there are
            fewer than eight.
        random_state: Randomness of fitting, and the default of the methods that draw.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        verbose: Show progress; see :func:`arcsm.fit`.
        order: ``"mixture"`` averages the densities of ``n_estimators`` orders, chosen among four times as many, with
            weights: those with which held-out rows, at most 128, have a high density. If they have missing values, the
            orders are arbitrary and the weights equal. ``"learned"`` has a single order, in which at most 250 held-out
            rows have a high density; see :func:`arcsm.queries.learned_order`. They choose the noise level too, so the
            gain may not carry over to other rows. The search takes up to 40 times as long as scoring these rows.

    Attributes:
        columns_: The inferred column types.
        config_: The configuration of the model.
        model_: The trained model; ``None`` if all columns are constant.
        held_out_rows_: Indices of the held-out rows.
        orders_: The orders of the density: indices of the columns that are not constant.
        order_weights_: Their weights in the mixture, which sum to one.
        gaps_: The model of the gaps of fitted rows; ``None`` if they have none.
        recurring_: The numbers that several fitted rows have, by column of the model.
        level_pairs_: The pairs of levels of discrete and categorical columns that occur together in fitted rows.
        n_features_in_: Number of columns.
        feature_names_in_: Column names, if the table is a data frame with string names.

    Example:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).normal(size=(200, 2))
        >>> density = ScoreDensity(max_steps=20, random_state=0).fit(rows)
        >>> density.score_samples(rows).shape, density.sample(3).shape
        ((200,), (3, 2))
        >>> density.conditional({0: 0.5, 1: (0.0, None)}, draws=4).shape  # the second column is positive
        (4, 2)
    """

    orders_: list[tuple[int, ...]]
    order_weights_: Array
    gaps_: GapModel | None
    recurring_: dict[int, RecurringValues]
    level_pairs_: LevelPairs

    def __init__(
        self,
        n_estimators: int | str = "auto",
        max_steps: int | str = "auto",
        hidden_features: tuple[int, ...] | str = "auto",
        validation_fraction: float = 0.15,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
        verbose: bool = False,
        order: str = "mixture",
    ) -> None:
        super().__init__(n_estimators, max_steps, hidden_features, validation_fraction, random_state, device, verbose)
        self.order = order

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
            modelled = numbers[:, self.columns_.modelled]
            self.gaps_ = GapModel.of_rows(modelled, self.held_out_rows_)
            self.recurring_ = recurring_values(self.model_, modelled)
            self._choose_orders(numbers)
            orders = () if self.model_ is None else self.model_.orders
            self.orders_ = [tuple(int(self.columns_.modelled[m]) for m in order) for order in orders]
            self.order_weights_ = np.ones(1) if self.model_ is None else np.array(self.model_.weights)
        return self

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.order not in ORDERS:
            raise ValueError(f"order: expected one of {', '.join(ORDERS)}, got {self.order!r:.60}")
        if self.order == "learned" and self.n_estimators not in ("auto", 1):
            raise ValueError(f'n_estimators: expected 1 or "auto" with order="learned", got {self.n_estimators}')

    def _choose_orders(self, numbers: Array) -> None:
        """Choose the orders of the density by held-out rows among encoded rows ``(N, D)``."""
        if self.model_ is None:
            return
        chosen = self.held_out_rows_[:_ORDER_ROWS]
        rows = torch.from_numpy(numbers[chosen][:, self.columns_.modelled])
        generator, verbose, columns = self._generator(None), bool(self.verbose), rows.shape[1]
        if self.order == "learned":
            evaluations = _ORDER_EVALUATIONS * self.model_.model.features
            order = self.model_.learn_order(rows, evaluations, generator=generator, progress=verbose)
            self.model_.orders, self.model_.cdf_order = [order], order
            return
        if bool(rows.isnan().any()):  # a known value may give away others, which draws do not know before it
            return
        count = len(self.model_.orders)
        candidates = max(count, min(_CANDIDATES * count, _MAX_CANDIDATE_COLUMNS // columns))
        with track("weighing orders", 1, verbose):
            orders = several_orders(columns, candidates, generator.initial_seed(), self.model_.last)
            self.model_.choose_orders(rows[:_MIXTURE_ROWS], orders, count)

    def score_samples(self, X: Any, columns: Sequence[Any] | None = None, given: Sequence[Any] | None = None) -> Array:
        """Return the log density of each row's known values in nats and in units of the table, ``(N,)``.

        The density of a discrete value is its probability divided by the step between values, so that the density of
        integers and of categories is a probability.

        Arguments:
            X: Rows.
            columns: The columns whose joint density is wanted. Default: all that are not ``given``.
            given: The columns that it is conditional on; their missing values are left out. Default: none.

        Raises:
            ValueError: If the columns differ from the fitted ones, a value is infinite (as in all methods that take
                rows), or ``columns`` and ``given`` are unknown or overlap.
        """
        modelled, constants = self.encode_rows(X)
        if columns is None and given is None:
            by_order = np.nansum(self._contributions(modelled, constants), -1)  # (K, N)
        else:
            by_order = self._subset_densities(modelled, constants, columns, given or ())
        if len(by_order) == 1:  # as that of columns without a model
            return by_order[0]  # type: ignore[no-any-return]
        return np.logaddexp.reduce(by_order + np.log(self.order_weights_)[:, None], 0)  # type: ignore[no-any-return]

    def _subset_densities(
        self, modelled: Tensor, constants: Array, columns: Sequence[Any] | None, given: Sequence[Any]
    ) -> Array:
        """Return the log density of some columns given others in each order, ``(K, N)``."""
        known = [column_index(self.columns_, name, "given") for name in given]
        if columns is None:
            wanted = [d for d in range(constants.shape[1]) if d not in known]
        else:
            wanted = [column_index(self.columns_, name, "columns") for name in columns]
        repeated = sorted({d for d in wanted if wanted.count(d) > 1})
        if repeated:
            raise ValueError(f"columns: expected each once, got {self.columns_.labels[repeated[0]]!r} more than once")
        both = sorted({*wanted} & {*known})
        if both or not wanted:
            got = f"{self.columns_.labels[both[0]]!r} in both" if both else "none"
            raise ValueError(f"columns: expected some that are not in `given`, got {got}")
        found = np.nansum(constants[:, wanted], 1)[None]
        places = {d: m for m, d in enumerate(self.columns_.modelled)}
        if self.model_ is None or not {*wanted} & {*places}:
            return found
        seen = [places[d] for d in (*wanted, *known) if d in places]
        x = torch.full_like(modelled, torch.nan)
        x[:, seen] = modelled[:, seen]
        terms = self.model_.log_prob_given(x, [places[d] for d in known if d in places]).numpy()
        slopes = self.columns_.log_slopes(x.numpy())
        return found + terms + slopes[:, [places[d] for d in wanted if d in places]].sum(1)  # type: ignore[no-any-return]

    def explain(self, X: Any) -> Any:
        """Return the log density of each value given all others of its row, ``(N, D)`` in nats.

        Low ones are surprising. They do not add up to the density of the row. The one of a missing value is NaN. A data
        frame gives a data frame of the same library, columns and index.
        """
        return self._labelled(self._given_others(X), X)

    def score_by_order(self, X: Any) -> Array:
        """Return the log density of each row in each order of the columns, ``(N, K)`` in nats.

        The orders would agree if the network were right in each of them. :meth:`score_samples` averages the densities.
        """
        return np.nansum(self._contributions(*self.encode_rows(X)), -1).T  # type: ignore[no-any-return]

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean log density of rows in nats."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: Any = None, gaps: bool = False) -> Any:
        """Draw rows, in the format of the fitted table: a data frame keeps its names, dtypes and categories.

        Numbers that several fitted rows have, such as round ones, occur about as often as in these.

        Arguments:
            n_samples: Number of rows.
            random_state: Randomness of the draws.
            gaps: Whether rows have missing values where those of the fitted table have; see
                :class:`~arcsm.estimators.gap_model.GapModel`. By default they are complete.
        """
        check_is_fitted(self)
        check_size("sample", n_samples=n_samples)
        if self.model_ is None:
            return self._decode(np.zeros((n_samples, 0)))
        generator = self._generator(random_state)
        drawn = table_draws.sample(self.model_, n_samples, generator, bool(self.verbose)).double().numpy()
        random = np.random.default_rng(generator.initial_seed())
        for m, values in self.recurring_.items():
            drawn[:, m] = values.moved(drawn[:, m], random)
        return self._decode(self.gaps_.draw(drawn, random) if gaps and self.gaps_ is not None else drawn)

    def cdf(self, X: Any) -> Array:
        """Return the distribution function of each value given the columns before it, ``(N, D)`` in (0, 1).

        The columns are in the order of the table, or in the learned one. Values of continuous columns are uniform if
        the model is right. A discrete column has the probability of values up to its own, in the order of numbers or of
        an ordered category, or else by frequency; constant columns are 0.5.
        """
        modelled, constants = self.encode_rows(X)
        u = np.full(constants.shape, 0.5)
        if self.model_ is not None:
            u[:, self.columns_.modelled] = np.nan_to_num(self.model_.cdf(modelled).numpy(), nan=0.5)
        return np.clip(u, np.finfo(float).tiny, 1.0 - np.finfo(float).epsneg)  # open, as `quantile` needs it

    def quantile(self, U: Any) -> Any:
        """Return the rows whose :meth:`cdf` is ``U``, ``(N, D)`` in (0, 1)."""
        check_is_fitted(self)
        U = np.asarray(U, dtype=np.float64)
        if U.ndim != 2 or U.shape[1] != self.n_features_in_:
            raise ValueError(f"U: expected shape (N, {self.n_features_in_}), got {U.shape}")
        if not ((U > 0.0) & (U < 1.0)).all():
            raise ValueError("U: expected values inside (0, 1)")
        if self.model_ is None:
            return self._decode(np.zeros((len(U), 0)))
        return self._decode(self.model_.icdf(torch.from_numpy(U[:, self.columns_.modelled])).numpy())

    def impute(
        self, X: Any, n: int = 1, estimate: Estimate | None = None, draws: int = 64, random_state: Any = None
    ) -> Any:
        """Fill missing values given the known ones of each row.

        One filled table has the best single values. Several are multiple imputations: each is a joint draw, so that
        results computed from all of them show how uncertain the filled values are.

        Arguments:
            X: Rows with missing values (NaN, or what pandas treats as missing).
            n: Number of filled tables.
            estimate: The single value, for ``n=1``: ``"mean"`` (default) has the smallest squared error, ``"median"``
                the smallest absolute error, ``"mode"`` is the most likely one, and ``"draw"`` a joint draw of all
                missing values of a row. A category is the most likely one unless it is drawn. All but a mean are values
                that the column can have; means are rounded if the fitted column had an integer dtype.
            draws: Number of joint draws that the single values are computed from.
            random_state: Randomness of the draws.

        Returns:
            For ``n=1`` a table in the library of ``X``, otherwise a list of ``n`` of them.
        """
        check_is_fitted(self)
        check_size("impute", n=n, draws=draws)
        possible: tuple[Any, ...] = (None, *ESTIMATES) if n == 1 else (None, "draw")
        if estimate not in possible:
            where = " with n > 1, where each table is a draw" if n > 1 else ""
            raise ValueError(f"estimate: expected one of {', '.join(map(str, possible))}{where}, got {estimate!r}")
        table = self._validated(X)
        encoded = self.columns_.encode(table)
        self.columns_.warn_of_ignored_values(encoded[np.isnan(encoded).any(1)])
        numbers = self._clip_modelled(encoded)
        exact = np.asarray(self.columns_.decode(numbers.nan_to_num(nan=0.0).numpy()), dtype=object)  # (N, D)
        fillings = [exact.copy() for _ in range(n)]
        incomplete = np.flatnonzero(numbers.isnan().any(1).numpy())
        generator = self._generator(random_state)
        starts = range(0, len(incomplete), _IMPUTED_ROWS_PER_BATCH)
        with track("filling", len(incomplete), bool(self.verbose)) as work:
            for rows in work.over((incomplete[start : start + _IMPUTED_ROWS_PER_BATCH] for start in starts), len):
                assert self.model_ is not None  # else no column is modelled, and no row incomplete
                count = draws if n == 1 and estimate != "draw" else n
                drawn = table_draws.complete(self.model_, numbers[rows], count, generator).rows.numpy()
                write_draws(fillings, rows, drawn, numbers[rows].isnan().numpy(), self.columns_, estimate or "mean")
        filled = [filled_table(X, table, values, self.columns_.dtypes) for values in fillings]
        return filled[0] if n == 1 else filled

    def conditional(self, given: Mapping[Any, Any], draws: int = 64, random_state: Any = None) -> Any:
        """Draw rows given values, sets of values or ranges of some columns.

        Arguments:
            given: What is known of some columns, by name (of a data frame) or index: a value, a set, list or array of
                values of a discrete or categorical column, or a range ``(low, high)`` that includes its ends. An end
                may be ``None``. Ranges of categories need an ordered categorical dtype. Times may be text, and a date
                or moment stands for the period that holds it.
            draws: Number of rows to draw. With sets or ranges of several columns, they are resampled from eight times
                as many draws with weights, and a draw with a large weight may occur more than once.
            random_state: Randomness of the draws.

        Raises:
            ValueError: If a column is unknown; if a discrete, categorical or constant column never has the value; if
                the value of a continuous column lies beyond the fitted range by more than its width; or if a set or
                range has no value or no probability.

        Warns:
            UserWarning: If two values of discrete or categorical columns never occur together in the fitted rows, or if
                few draws are distinct.

        Example:
            >>> rows = pd.DataFrame({"age": np.arange(60) % 40, "city": ["Rome", "Oslo", "Bern"] * 20})
            >>> density = ScoreDensity(max_steps=20, random_state=0).fit(rows)
            >>> drawn = density.conditional({"age": (20, 29), "city": {"Rome", "Bern"}}, draws=50)
            >>> bool(drawn["age"].between(20, 29).all()), sorted(drawn["city"].unique())
            (True, ['Bern', 'Rome'])
        """
        check_is_fitted(self)
        check_size("conditional", draws=draws)
        conditions = Conditions.parse(self.columns_, given, "given")
        self._warn_of_new_pairs(conditions.numbers, conditions.values)
        if self.model_ is None:
            return self._decode(np.zeros((draws, 0)))
        known = self._clip_modelled(conditions.numbers[None])
        constraints = self._by_modelled_column(conditions.constraints)
        generator = self._generator(random_state)
        drawn, effective = table_draws.draw_given(self.model_, known, constraints, draws, generator, bool(self.verbose))
        if effective < 0.5 * draws:
            warn(
                f"only about {math.ceil(effective)} of the {draws} draws are distinct: few sampled rows match the "
                "given values"
            )
        rows = self.columns_.decode(drawn.numpy())
        for column, value in conditions.values.items():  # exactly, although encoding and decoding rounds
            kind = self.columns_.kinds[self.columns_.labels.index(column)]
            if isinstance(kind, Times) and kind.must_parse(value):
                continue
            if isinstance(rows, pd.DataFrame):
                exact, dtype = np.full(draws, value, dtype=object), rows[column].dtype
                rows[column] = pd.Series(clip_to_dtype(exact, dtype), index=rows.index).astype(dtype)
            else:
                rows[:, column] = value
        return self._as_fitted(rows)

    def probability(
        self,
        event: Mapping[Any, Any],
        given: Mapping[Any, Any] | None = None,
        draws: int = 4000,
        random_state: Any = None,
    ) -> Probability:
        """Return the probability that columns have certain values, with its standard error.

        The values of a column of levels in the fitted rows have all of its probability. :meth:`score_samples` leaves a
        share of 1 / (n + 2), with n known values in the fitted rows, to others.

        Arguments:
            event: A value, set or range of each column of the event, as in :meth:`conditional`; for a continuous column
                a range.
            given: What is known of some columns, likewise. They come before those of the event, so the probabilities
                of events that exclude each other sum to at most one. Default: nothing.
            draws: Number of draws. An event of one column given values of others needs none: the standard error is 0.
                It comes from the conditional of the column itself; orders in which other columns come before it, which
                :meth:`sample` and :meth:`conditional` draw from, may differ from that. If the column's gaps depend on
                other columns, these are drawn first.
            random_state: Randomness of the draws.

        Returns:
            The probability, and the standard error that is due to the number of draws and to differences between orders
            of the columns.

        Raises:
            ValueError: As in :meth:`conditional`, but a number or time that a column cannot have has probability 0 in
                the event; if the event has no column; if it has the value of a continuous column; or if the conditions
                have probability zero.
        """
        check_is_fitted(self)
        if not event:
            raise ValueError("event: expected at least one column")
        conditions = Conditions.parse(self.columns_, given or {}, "given")
        of_event = Conditions.parse(self.columns_, event, "event", allow_impossible=True)
        wanted = of_event.as_constraints(self.columns_, "event")
        for name in conditions.values:
            if self.columns_.labels.index(name) in wanted:
                raise ValueError(f"event: column {name!r} has a value in `given`; leave it out of the event")
        parts = dict[int, Constraint | None](wanted)
        for d in {*wanted} & {*conditions.constraints}:
            parts[d] = wanted[d].intersection(conditions.constraints[d])
        possible = {d: constraint for d, constraint in parts.items() if constraint is not None}
        if of_event.impossible or len(possible) < len(parts):
            return Probability(0.0, 0.0)
        if self.model_ is None or not possible:
            return Probability(1.0, 0.0)
        sets, given_sets = map(self._by_modelled_column, (possible, conditions.constraints))
        known, generator = self._clip_modelled(conditions.numbers[None]), self._generator(random_state)
        return Probability(*table_draws.probability(self.model_, sets, known, draws, generator, given_sets))

    def _by_modelled_column(self, constraints: Mapping[int, Constraint]) -> dict[int, Constraint]:
        return {self.columns_.modelled.index(d): constraint for d, constraint in constraints.items()}

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
