"""A regressor with scikit-learn's interface that predicts the whole distribution of its targets."""

from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from arcsm.data.arrays import without_mask
from arcsm.data.column_types import TIME_TYPES
from arcsm.errors import is_no_number
from arcsm.estimators.column_types import Array
from arcsm.estimators.hinted_density import HintedDensity
from arcsm.estimators.predictive_distribution import PredictiveDistribution
from arcsm.estimators.target_conditionals import target_conditionals
from arcsm.estimators.target_estimator import TargetEstimator

Statistic = Literal["mean", "median", "mode"]
STATISTICS: tuple[str, ...] = get_args(Statistic)


class ScoreRegressor(RegressorMixin, TargetEstimator):
    """A regressor that predicts the distribution of one target, or of several jointly, given the features of a row.

    It fits the conditional density of the targets given any of the features. So features may be of any type that
    :class:`ScoreDensity` takes, and may be missing when fitting and when predicting. The spread and the shape of the
    distribution may depend on the features, too. What a forest of trees predicts for a row is a further feature.

    Arguments:
        n_estimators: Number of orders of several targets whose joint densities are averaged, at most; one target has a
            single order.
        max_steps: Training steps. ``"auto"``: at most 1,500.
        validation_fraction: As in :class:`ScoreDensity`, like all other arguments.

    Attributes:
        columns_: The inferred types of the features.
        model_: The model of the targets given features; ``None`` if all targets are constant.
        n_targets_: Number of targets.
        n_features_in_: Number of features.
        feature_names_in_: Names of the features, if they are a data frame with string names.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(200, 2))
        >>> y = x[:, 0] + 0.1 * np.random.default_rng(1).normal(size=200)
        >>> regressor = ScoreRegressor(max_steps=20, n_estimators=1, random_state=0).fit(x, y)
        >>> regressor.predict(x[:3]).shape, regressor.predict_distribution(x[:3]).quantile(0.9).shape
        ((3,), (3,))
        >>> bool(np.isfinite(regressor.predict([[0.5, np.nan]])).all())  # a feature may be missing
        True
    """

    _density_class = HintedDensity
    n_targets_: int
    _single: bool

    def fit(self, X: Any, y: Any) -> Self:
        """Fit rows ``(N, D)``, an array or a data frame, and numeric targets, ``(N,)`` or ``(N, T)``.

        As in scikit-learn, truth values count as 1 and 0, and numbers may be text. Labels are for
        :class:`ScoreClassifier`.

        Raises:
            ValueError: If a target is missing, infinite or no number, such as a date or duration, if the lengths
                differ, or as in :meth:`ScoreDensity.fit`.
        """
        if y is None:
            raise ValueError("y: expected targets; ScoreRegressor requires y to be passed, but the target y is None")
        y = without_mask(y)
        _check_are_no_times(y)
        try:
            targets = check_array(y, dtype=np.float64, ensure_2d=False, ensure_min_samples=0, input_name="y")
        except ValueError as error:
            if is_no_number(error):
                raise ValueError(f"y: expected numbers ({error}); labels are for ScoreClassifier") from error
            raise
        if targets.ndim not in (1, 2):
            raise ValueError(f"y: expected shape (N,) or (N, T), got {targets.shape}")
        with self._unchanged_on_failure():
            self._fit_joint(X, targets[:, None] if targets.ndim == 1 else targets)
            self.n_targets_ = 1 if targets.ndim == 1 else targets.shape[1]
            self._single = targets.ndim == 1
        return self

    def predict(self, X: Any, statistic: Statistic = "mean") -> Array:
        """Return a statistic of each target given the features, ``(N,)`` or ``(N, T)`` as when fitted.

        Arguments:
            X: Rows.
            statistic: ``"mean"`` has the smallest squared error, ``"median"`` the smallest absolute error, and
                ``"mode"`` is the most likely value.
        """
        if statistic not in STATISTICS:
            raise ValueError(f"statistic: expected one of {', '.join(STATISTICS)}, got {statistic!r}")
        found: Array = getattr(self.predict_distribution(X), statistic)()
        return found

    def predict_distribution(self, X: Any) -> PredictiveDistribution:
        """Return the distribution of the targets given the features of each row."""
        numbers, _ = self.encode_rows(X)
        places = [self._target(t) for t in range(self.n_targets_)]
        targets = [target_conditionals(self.model_, kind, column) for kind, column in places]
        orders = self._orders([column for _, column in places])
        return PredictiveDistribution(targets, orders, numbers, self._single, self.random_state)

    def _orders(self, columns: Sequence[int | None]) -> list[list[int]]:
        """Return the orders of the targets, whose columns in the model are given: those of the density."""
        constant = [t for t, column in enumerate(columns) if column is None]
        if self.model_ is None:
            return [constant]
        orders = {tuple(m for m in order if m in columns) for order in self.model_.orders}
        return [[columns.index(m) for m in order] + constant for order in sorted(orders)]

    def log_score(self, X: Any, y: Any) -> float:
        """Return the mean log density of targets given the features, in nats and in units of the targets."""
        check_is_fitted(self)
        _check_are_no_times(y)
        targets = np.asarray(without_mask(y), dtype=np.float64)
        predicted = self.predict_distribution(X)
        if targets.shape != predicted.shape:
            raise ValueError(f"y: expected shape {predicted.shape}, got {targets.shape}")
        return float(predicted.log_pdf(targets).mean())

    def _facts(self) -> list[str]:
        forest = getattr(self._joint, "_forest", None)
        return super()._facts() if forest is None else [*super()._facts(), f"{len(forest.roots)} trees"]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _check_are_no_times(y: Any) -> None:
    """Check that targets hold no dates, times or durations, whose numbers depend on the unit of their dtype."""
    cells = np.asarray(y).flatten()
    is_time = cells.dtype.kind in "mM"
    times = cells if is_time or cells.dtype == object else ()
    first = next((cell for cell in times if is_time or isinstance(cell, TIME_TYPES)), None)
    if first is not None:
        raise ValueError(
            f"y: expected numbers, got {str(first)!r}; count dates, times and durations in a unit, such as days since "
            "the first date: (y - y.min()) / pd.Timedelta('1D')"
        )
