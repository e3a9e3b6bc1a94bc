"""An outlier detector for tables, as scikit-learn has them, that says which columns are to top_contributions."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import OutlierMixin
from sklearn.utils.validation import check_is_fitted

from arcsm.estimators.base import Array, TableEstimator


class ScoreOutlierDetector(OutlierMixin, TableEstimator):
    """Rows that do not belong, by their log density under :class:`ScoreDensity`'s models.

    The score of a row is the mean of its log densities over the models, so that it is a sum over the columns
    (:meth:`explain`), and does not depend on which rows it comes with. It is the density of the columns' numbers, after
    their tails are mapped away and before the map's slope makes it that of the table: a value that is common, but in a
    stretch of its column where values lie far apart, is not thereby surprising.

    Arguments:
        contamination: Share of the fitted rows that :meth:`predict` calls outliers; ``"auto"`` is 0.1. It only moves
            the threshold; see :meth:`set_contamination`.
        n_estimators: As in :class:`ScoreDensity`, like all that follow.
        max_steps: Training steps of each model.
        hidden_features: Units of the layers of the context network.
        validation_fraction: Share of the rows that is held out; p-values are by these rows.
        missing: Whether rows to come may have missing values.
        random_state: Of everything random in fitting.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        verbose: Show progress bars (on a terminal).

    Attributes:
        offset_: The threshold of :meth:`score_samples`.
        n_features_in_: Number of columns.
        feature_names_in_: Their names, of a frame.

    Example:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).normal(size=(200, 2))
        >>> detector = ScoreOutlierDetector(max_steps=20, n_estimators=1, random_state=0).fit(rows)
        >>> detector.predict([[0.0, 0.0], [9.0, 9.0]])
        array([ 1, -1])
        >>> detector.explain([[0.0, 9.0]]).argmin()  # the column to top_contributions
        np.int64(1)
    """

    _smooth = True

    def __init__(
        self,
        contamination: float | str = "auto",
        n_estimators: int | str = "auto",
        max_steps: int | str = "auto",
        hidden_features: tuple[int, ...] | str = "auto",
        validation_fraction: float = 0.15,
        missing: bool | str = "auto",
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
        verbose: bool = False,
    ) -> None:
        super().__init__(
            n_estimators, max_steps, hidden_features, validation_fraction, missing, random_state, device, verbose
        )
        self.contamination = contamination

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit to rows ``(N, D)``, most of which are normal.

        Raises:
            ValueError: for fewer than two rows, infinite values, dates, a column of nothing but missing values or of
                names that hardly repeat, arguments out of range, or a contamination outside (0, 0.5].
        """
        share = self._share(self.contamination)
        with self._all_or_nothing():
            self._fit_table(X)
            contributions = self._contributions(X).mean(0)
            self.median_contributions_ = np.nanmedian(contributions, 0)
            self.fitted_scores_ = self._with_gaps(contributions).sum(1)
            self.held_out_scores_ = np.sort(self.fitted_scores_[self.held_out_rows_])
            self.offset_ = float(np.percentile(self.fitted_scores_, 100.0 * share))
        return self

    def set_contamination(self, contamination: float | str) -> Self:
        """Move the threshold of :meth:`predict` to another share of the fitted rows, without fitting again."""
        check_is_fitted(self)
        share = self._share(contamination)
        self.contamination, self.offset_ = contamination, float(np.percentile(self.fitted_scores_, 100.0 * share))
        return self

    def score_samples(self, X: Any) -> Array:
        """Mean over the models of each row's log density in nats, in units of the mapped columns, ``(N,)``.

        The larger, the more normal.

        Raises:
            ValueError: for other columns than were fitted, infinite values, or missing ones where the fitted rows had
                none (unless ``missing=True``). So do all methods that take rows.
        """
        return self.explain(X).sum(1)  # type: ignore[no-any-return]

    def all_scores(self, X: Any) -> pd.DataFrame:
        """Every score that there is of each row, a column for each; **the larger, the more normal**.

        - ``likelihood SIGMA``: the mean over the models of the row's log density with the noise of a level, in nats.
          The last is :meth:`score_samples` (but that a missing value adds nothing).
        - ``score norm SIGMA``: the norm of the row's scores at a level, in units of :math:`1 / \\sigma`, negative.
        - ``tails``: how far out in their conditionals the values are (:func:`arcsm.anomaly.tail_surprise`), negative.

        Of a frame, the result has its index. Each noise level takes as long as :meth:`score_samples`.
        :class:`arcsm.anomaly.Combination` makes one score of several, from inliers alone.
        """
        modelled, constants = self._numbers(X)
        certain = np.nansum(constants, 1)
        index = X.index if isinstance(X, pd.DataFrame) else None
        if self.ensemble_ is None:
            return pd.DataFrame({"likelihood": certain}, index=index)
        found: dict[str, Array] = {}
        sigmas = self.ensemble_.members[0].path()
        slopes = self.columns_.log_slopes(modelled.numpy(), of_maps=False)
        for level, sigma in enumerate(sigmas):
            terms = self.ensemble_.terms(modelled, level).mean(0).numpy() + slopes
            found[f"likelihood {sigma:.3g}"] = terms.sum(1) + certain
        for level, sigma in enumerate(sigmas):
            found[f"score norm {sigma:.3g}"] = -self.ensemble_.score_norms(modelled, level).mean(0).numpy()
        return pd.DataFrame({**found, "tails": -self.ensemble_.tails(modelled).mean(0).numpy()}, index=index)

    def decision_function(self, X: Any) -> Array:
        """:meth:`score_samples` less the threshold, ``(N,)``: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int_]:
        """1 for normal rows, -1 for outliers, ``(N,)``."""
        return np.where(self.decision_function(X) < 0.0, -1, 1)

    def p_values(self, X: Any) -> Array:
        """The chance that a normal row looks as unusual, ``(N,)``: by how many held-out rows do.

        At least ``1 / (held-out rows + 1)``. Where no rows were held out (very few rows), the fitted ones stand in, and
        the values are too small.
        """
        return self.p_values_of(self.score_samples(X))

    def p_values_of(self, scores: Array) -> Array:
        """:meth:`p_values` of rows whose scores are at hand."""
        below = np.searchsorted(self.held_out_scores_, scores, side="right")
        return np.asarray((1.0 + below) / (1.0 + len(self.held_out_scores_)), dtype=np.float64)

    def explain(self, X: Any) -> Array:
        """What each column adds to :meth:`score_samples`, ``(N, D)`` in nats: the lowest are to top_contributions.

        The log density of the column's value given the columns before it, averaged over the models and so over
        orders. A missing value adds what is usual for its column, so that a gap speaks neither for nor against a row.
        """
        return self._with_gaps(self._contributions(X).mean(0))

    def _with_gaps(self, contributions: Array) -> Array:
        return np.where(np.isnan(contributions), self.median_contributions_, contributions)

    def top_contributions(self, X: Any, columns: int = 3) -> pd.DataFrame:
        """The columns that speak most against each row: those that add least, beside what they add to a usual row.

        Returns:
            A row for each of the ``columns`` worst of each row: ``row`` (by place, from 0), ``column``,
            ``contribution`` (nats less that column's median: the lower the worse, above zero it speaks for the row).
        """
        check_is_fitted(self)
        found = self.explain(X) - self.median_contributions_
        names = list(self.columns_.names or range(self.n_features_in_))
        worst = np.argsort(found, 1)[:, :columns]
        rows = np.repeat(np.arange(len(found)), worst.shape[1])
        return pd.DataFrame(
            {"row": rows, "column": [names[d] for d in worst.flatten()], "contribution": found[rows, worst.flatten()]}
        )

    def expected(self, X: Any, share: float = 0.9) -> tuple[Any, Any]:
        """Between which values each value was to be expected, given others of its row, with the probability ``share``.

        By the model that is given most of the others: with one model those are the columns before it.

        Returns:
            Two tables like the one that was fitted; of a frame, with the index of ``X``.
        """
        modelled, _ = self._numbers(X)
        if not 0.0 < share < 1.0:
            raise ValueError(f"share: expected a number between 0 and 1, got {share}")
        if self.ensemble_ is None:
            same = self._with_index(self.columns_.decode(np.zeros((len(modelled), 0))), X)
            return same, same
        edges = (0.5 * (1.0 - share), 0.5 * (1.0 + share))
        low, high = (
            self._with_index(self.columns_.decode(self.ensemble_.expected(modelled, u).numpy()), X) for u in edges
        )
        return low, high

    @staticmethod
    def _with_index(rows: Any, like: Any) -> Any:
        """Rows of a frame with the index of those that they are about."""
        both = isinstance(rows, pd.DataFrame) and isinstance(like, pd.DataFrame)
        return rows.set_axis(like.index) if both else rows

    def _share(self, contamination: Any) -> float:
        if isinstance(contamination, str) and contamination == "auto":
            return 0.1
        if isinstance(contamination, str) or not 0.0 < contamination <= 0.5:
            raise ValueError(f'contamination: expected "auto" or a number in (0, 0.5], got {contamination!r}')
        return float(contamination)
