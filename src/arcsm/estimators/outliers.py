"""An outlier detector for tables with scikit-learn's interface, which explains its scores by column."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import OutlierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from arcsm._runtime.devices import resolve_device
from arcsm._runtime.progress import track
from arcsm._runtime.sizes import check_size
from arcsm.errors import warn
from arcsm.estimators.calibration import Calibration
from arcsm.estimators.column_inference import NumberRules
from arcsm.estimators.column_types import Array
from arcsm.estimators.counterfactuals import ConditionalsByPlace, best_changes, frame_of_changes, known_places
from arcsm.estimators.density_estimator import DensityEstimator, Rows
from arcsm.estimators.interval_calibration import IntervalCalibration
from arcsm.estimators.native_frames import is_native, to_native
from arcsm.estimators.screening import suspicious_rows, without_suspicious
from arcsm.estimators.table_distillation import distilled_table
from arcsm.estimators.value_conditionals import ValueConditional, value_conditionals
from arcsm.estimators.value_limits import ValueLimits
from arcsm.training.distillation import DistilConfig

Given = Literal["before", "others"]
_MAX_REFERENCE_ROWS = 5_000
_RARELY_KNOWN_ROWS = 100  # of a column that those leave out
_FLAGGED = 0.1  # of the held-out rows


class ScoreOutlierDetector(OutlierMixin, DensityEstimator):
    """An outlier detector that scores rows by their log density under an autoregressive score model.

    The score of a row is its mean log density over several orders of the columns. It is a sum over the columns, which
    :meth:`explain` returns, and does not depend on the other rows scored with it. The density is that of the
    transformed columns. It leaves out the slope of the transform, so that a common value is no outlier merely because
    few values lie near it.

    Arguments:
        contamination: Fraction of outliers among the rows given to :meth:`fit`, which :meth:`predict` labels. Three
            times as many rows, those that an isolation forest separates first, are left out of the training.
            ``"auto"``: these rows are normal, and all are fitted. The threshold is that of a tenth of the held-out
            rows, so that about a tenth of new rows like them are labelled.
        max_steps: Training steps. ``"auto"``: 1,000 to 4,000 by the number of rows. Training stops early if held-out
            rows no longer improve.
        hidden_features: As in :class:`ScoreDensity`. ``"auto"``: two layers of 128.
        validation_fraction: As in :class:`ScoreDensity`, like all other arguments; the held-out rows also calibrate the
            p-values.
        fast: Whether to score rows faster, by closed forms that approximate the fitted density. They are learned from
            it at the end of the fit, which takes longer; see :func:`arcsm.distil`.

    Attributes:
        offset_: The threshold of :meth:`score_samples`.
        screened_rows_: Indices of the rows that were left out of the training, because they may be outliers.
        n_fitted_rows_: Number of fitted rows.
        fitted_scores_: Scores of the fitted rows, of at most 5,000 of them.
        held_out_scores_: Scores of the rows that calibrate the p-values, in ascending order: the held-out rows among
            them, or those of :meth:`calibrate`.
        held_out_weights_: Weights of the same rows, 1 unless :meth:`calibrate` was given others.
        interval_calibration_: Where held-out values lie in their conditionals; it calibrates the expected intervals.
        median_contributions_: Median contribution of each column over the same rows.
        fitted_excess_: Contributions of the same rows minus the medians.
        limits_: The ranges of the modelled columns in the fitted rows, without gross errors.
        n_features_in_: Number of columns.
        feature_names_in_: Column names, if the table is a data frame with string names.

    Example:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).normal(size=(200, 2))
        >>> detector = ScoreOutlierDetector(max_steps=20, n_estimators=1, random_state=0).fit(rows)
        >>> detector.predict([[0.0, 0.0], [9.0, 9.0]])
        array([ 1, -1])
        >>> detector.explain([[0.0, 9.0]]).argmin()  # the most surprising column
        np.int64(1)
    """

    screened_rows_: Rows
    median_contributions_: Array
    n_fitted_rows_: int
    fitted_scores_: Array
    fitted_excess_: Array
    held_out_scores_: Array
    held_out_weights_: Array
    interval_calibration_: IntervalCalibration
    offset_: float
    limits_: ValueLimits
    _smooth, _rules = True, NumberRules(few=2, most=2, map_grids=False)

    def __init__(
        self,
        contamination: float | str = "auto",
        n_estimators: int | str = "auto",
        max_steps: int | str = "auto",
        hidden_features: tuple[int, ...] | str = "auto",
        validation_fraction: float = 0.15,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
        verbose: bool = False,
        fast: bool = False,
    ) -> None:
        super().__init__(n_estimators, max_steps, hidden_features, validation_fraction, random_state, device, verbose)
        self.contamination = contamination
        self.fast = fast

    def fit(self, X: Any, y: Any = None, **unsupported: Any) -> Self:
        """Fit rows ``(N, D)``, most of them normal: an array or a data frame (of pandas, polars or pyarrow).

        Raises:
            TypeError: If ``sample_weight`` or another argument is given.
            ValueError: If the contamination is outside (0, 0.5], or as in :meth:`ScoreDensity.fit`.

        Warns:
            UserWarning: If the rows are too few for a threshold that flags a tenth of normal rows, or the closed forms
                of ``fast`` lose much.
        """
        self._check_fit_arguments(unsupported)
        _check_contamination(self.contamination)
        with self._unchanged_on_failure():
            modelled, constants = self._separate(self._fit_table(X))
            if self.fast and self.model_ is not None:
                seed, device = self._generator(None).initial_seed(), str(resolve_device(self.device))
                config = DistilConfig(seed=seed, device=device)
                is_fitted = torch.ones(len(modelled), dtype=torch.bool)
                is_fitted[self.held_out_rows_] = is_fitted[self.screened_rows_] = False
                rows = modelled[is_fitted] if bool(is_fitted.any()) else modelled  # those of a tiny table serve as both
                self.model_ = distilled_table(self.model_, rows, config, bool(self.verbose))
            self.n_fitted_rows_ = len(modelled)
            some = _reference_rows(~np.isnan(constants))
            scored = np.union1d(some, self.held_out_rows_)
            with track("scoring fitted rows", 1, bool(self.verbose)):
                contributions = self._contributions(modelled[scored], constants[scored]).mean(0)
            self.median_contributions_ = np.nanmedian(contributions[np.isin(scored, some)], 0)
            contributions = self._with_medians(contributions)
            self.fitted_excess_ = contributions[np.isin(scored, some)] - self.median_contributions_
            self.fitted_scores_ = contributions[np.isin(scored, some)].sum(1)
            self.held_out_scores_ = np.sort(contributions[np.isin(scored, self.held_out_rows_)].sum(1))
            self.held_out_weights_ = np.ones(len(self.held_out_scores_))
            self.offset_ = self._threshold(self.contamination)
            kinds = [self.columns_.kinds[d] for d in self.columns_.modelled]
            self.limits_ = ValueLimits.of_training_rows(modelled.numpy(), kinds)
            held_out = modelled[self.held_out_rows_]
            self.interval_calibration_ = IntervalCalibration.measure(self.model_, self.limits_, modelled, held_out)
        return self

    def _screened(self, x: Array, train: Rows, held_out: Rows, seed: int) -> tuple[Rows, Rows]:
        self.screened_rows_ = np.empty(0, dtype=int)
        if isinstance(self.contamination, str) or not x.shape[1]:
            return train, held_out
        kinds = [self.columns_.kinds[d] for d in self.columns_.modelled]
        suspicious = suspicious_rows(kinds, x, self.contamination, seed)
        train, normal = without_suspicious(x, train, suspicious), held_out[~np.isin(held_out, suspicious)]
        held_out = normal if len(normal) > 1 else held_out
        self.screened_rows_ = np.setdiff1d(np.arange(len(x)), np.concatenate([train, held_out]))
        return train, held_out

    def warn_of_training_rows(self) -> None:
        """Warn if training rows calibrate the p-values, which are too small then."""
        if len(self.held_out_rows_) == self.n_fitted_rows_ == len(self.held_out_scores_):
            warn(
                "all rows were fitted, so p-values are too small and more of the outliers than asked may be normal; "
                "calibrate with other rows, or fit to more"
            )

    def set_contamination(self, contamination: float | str) -> Self:
        """Move the threshold of :meth:`predict` to another fraction of the fitted rows, without fitting again.

        The same rows are left out of the training as before.
        """
        check_is_fitted(self)
        _check_contamination(contamination)
        self.offset_ = self._threshold(contamination)
        self.contamination = contamination
        return self

    def _threshold(self, contamination: float | str) -> float:
        if isinstance(contamination, str):  # "auto"
            smallest = 1.0 / (1.0 + len(self.held_out_scores_))
            if smallest > _FLAGGED:
                warn(
                    f"few rows: {len(self.held_out_scores_)} of them set the threshold, and about {smallest:.0%} of "
                    "normal rows are flagged; set `contamination`, or fit more rows"
                )
            return self.score_of_p_value(max(_FLAGGED, smallest))
        return float(np.percentile(self.fitted_scores_, 100.0 * contamination))

    def score_samples(self, X: Any) -> Array:
        """Return the mean log density of each row over the orders, ``(N,)`` in nats: higher is more normal.

        Raises:
            ValueError: As in :meth:`ScoreDensity.score_samples`.
        """
        return self.scores_of_encoded(*self.encode_rows(X))

    def scores_of_encoded(self, modelled: Tensor, constants: Array) -> Array:
        """Return :meth:`score_samples` of encoded rows; see :meth:`encode_rows`."""
        return self._with_medians(self._contributions(modelled, constants).mean(0)).sum(1)  # type: ignore[no-any-return]

    def all_scores(self, X: Any) -> Any:
        """Return every available score of each row, one column for each. **Higher scores are more normal.**

        - ``likelihood SIGMA``: the mean log density over the orders at a noise level, in nats. The last equals
          :meth:`score_samples`, except that a missing value contributes 0. A ``fast`` detector has this level alone.
        - ``score norm SIGMA``: the negative norm of the row's scores at a noise level, in units of :math:`1 / \\sigma`.
        - ``tails``: how far in the tails of their conditionals the values lie, negative; see
          :func:`arcsm.anomaly.tail_surprise`.

        The result has the library and the index of a data frame ``X``, else it is of pandas. Each noise level takes as
        long as :meth:`score_samples`. :class:`arcsm.anomaly.Combination` combines several scores, fitted to inliers
        alone.
        """
        modelled, constants = self.encode_rows(X)
        base = np.nansum(constants, 1)
        if self.model_ is None:
            return self._labelled(pd.DataFrame({"likelihood": base}), X)
        scores: dict[str, Array] = {}
        sigmas = self.model_.sigmas
        for level, sigma in enumerate(sigmas):
            terms = self.model_.log_conditionals(modelled, level).mean(0).numpy()
            scores[f"likelihood {sigma:.3g}"] = terms.sum(1) + base
        for level, sigma in enumerate(sigmas):
            scores[f"score norm {sigma:.3g}"] = -self.model_.score_norms(modelled, level).mean(0).numpy()
        scores["tails"] = -self.model_.tail_surprises(modelled).mean(0).numpy()
        return self._labelled(pd.DataFrame(scores), X)

    def decision_function(self, X: Any) -> Array:
        """Return :meth:`score_samples` minus the threshold, ``(N,)``: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int_]:
        """Return 1 for normal rows and -1 for outliers, ``(N,)``."""
        return np.where(self.decision_function(X) < 0.0, -1, 1)

    def calibrate(self, X: Any, weights: Any = None) -> Self:
        """Let other normal rows calibrate the p-values, without fitting again.

        If they were not fitted, p-values are exact (split conformal): for a new row from the same distribution,
        whatever it is, :math:`P(p \\le \\alpha) \\le \\alpha`. By default the held-out rows calibrate them. These
        also choose when the training ends, so it holds only nearly. With ``contamination="auto"``, the threshold
        follows.

        Arguments:
            X: Normal rows ``(N, D)`` that were not fitted.
            weights: If normal rows are distributed otherwise today (covariate shift): how many times as likely each of
                these rows is today, ``(N,)``. The p-values of new rows then need weights on the same scale.

        Raises:
            ValueError: If weights are negative or no numbers, or all are zero.
        """
        calibration = Calibration.of(self.score_samples(X), weights)
        self.held_out_scores_, self.held_out_weights_ = calibration.scores, calibration.weights
        if isinstance(self.contamination, str):
            self.offset_ = self._threshold(self.contamination)
        return self

    def p_values(self, X: Any, weights: Any = None) -> Array:
        """Return the p-value of each row, from the share of held-out rows with as low a score, ``(N,)``.

        Without weights, the smallest is ``1 / (held-out rows + 1)``. A tiny table has no held-out rows, so the training
        rows serve instead and the p-values are too small. See :meth:`calibrate` for exact ones, and for the ``weights
        (N,)``.
        """
        return self.p_values_from_scores(self.score_samples(X), weights)

    def select(self, X: Any, fdr: float = 0.1, weights: Any = None) -> NDArray[np.bool_]:
        """Return which rows are outliers so that at most a share ``fdr`` of these is expected to be normal, ``(N,)``.

        The bound holds if :meth:`calibrate` made the p-values exact, and nearly otherwise. It is that of Benjamini and
        Hochberg, or of Jin and Candes if there are weights; see :mod:`arcsm.estimators.false_discoveries`.
        :meth:`predict` instead labels a share of all rows. Which rows are selected depends on the others that are
        tested with them.

        Arguments:
            X: Rows ``(N, D)``.
            fdr: The bound.
            weights: Those of the rows, ``(N,)``, if :meth:`calibrate` was given weights.

        Raises:
            ValueError: If ``fdr`` is not between 0 and 1, or lower than the held-out rows can tell; or if the held-out
                rows have different weights and these rows none.

        Warns:
            UserWarning: If few outliers could not be told from chance with so few held-out rows.
        """
        self.warn_of_training_rows()
        return self._calibration.select(self.score_samples(X), fdr, weights)

    def p_values_from_scores(self, scores: Array, weights: Any = None) -> Array:
        """Return the p-values of rows with these :meth:`score_samples`."""
        return self._calibration.p_values(scores, weights)

    def score_of_p_value(self, p_value: float) -> float:
        """Return the threshold below which the p-values of scores, of rows of mean weight, are at most ``p_value``."""
        return self._calibration.threshold(p_value)

    @property
    def _calibration(self) -> Calibration:
        return Calibration(self.held_out_scores_, self.held_out_weights_)

    def explain(self, X: Any, given: Given = "before") -> Any:
        """Return the contribution of each column to :meth:`score_samples`, ``(N, D)`` in nats: low ones are surprising.

        The contribution is the value's log density given the columns before it, averaged over several orders. A missing
        value contributes the median of its column, which makes it neutral. A data frame gives a data frame of the same
        library, columns and index.

        Arguments:
            X: Rows.
            given: ``"before"``, or ``"others"`` for the log density of each value given all others of its row. These do
                not add up to the score. The one of a missing value is NaN.
        """
        if given == "before":
            return self._labelled(self._mean_contributions(X), X)
        if given != "others":
            raise ValueError(f"given: expected before or others, got {given!r}")
        return self._labelled(self._given_others(X), X)

    def _mean_contributions(self, X: Any) -> Array:
        return self._with_medians(self._contributions(*self.encode_rows(X)).mean(0))

    def _with_medians(self, contributions: Array) -> Array:
        return np.where(np.isnan(contributions), self.median_contributions_, contributions)

    def top_contributions(self, X: Any, columns: int = 3) -> Any:
        """Return the most surprising columns of each row: those that contribute least compared with their median.

        Raises:
            ValueError: If ``columns`` is less than 1, or as in :meth:`ScoreDensity.score_samples`.

        Returns:
            A data frame with one line for each of the ``columns`` most surprising columns of each row: ``row`` (its
            position, from 0), ``column``, and ``contribution`` in nats minus the column's median, negative for a
            surprising value. It has the library of a data frame ``X``, and repeats the index of a frame of pandas.
        """
        check_is_fitted(self)
        check_size("top_contributions", columns=columns)
        excess = self._mean_contributions(X) - self.median_contributions_
        lowest = np.argsort(excess, 1)[:, :columns]
        rows, places = np.repeat(np.arange(len(excess)), lowest.shape[1]), lowest.flatten()
        names, index = self.columns_.labels, X.index[rows] if isinstance(X, pd.DataFrame) else None
        lines = {"row": rows, "column": [names[d] for d in places], "contribution": excess[rows, places]}
        frame = pd.DataFrame(lines, index=index)
        return to_native(frame, X, keep_types=False) if is_native(X) else frame

    def counterfactuals(self, X: Any, columns: int = 3) -> Any:
        """Return for each row the change of one value after which its score is highest.

        The value is one of the ``columns`` most surprising known ones, and becomes the most likely of 40 equally likely
        ones, given all others of the row. Where no change helps, the score may fall slightly.

        Raises:
            ValueError: If ``columns`` is less than 1, or as in :meth:`ScoreDensity.score_samples`.

        Returns:
            A data frame with a line for each row: ``column``, the new ``value`` (both missing for an empty row), the
            ``score`` of the changed row, and whether it still is an ``outlier``. It has the library of a data frame
            ``X``, and the index of a frame of pandas. Those of other libraries have the values as text.

        Example:
            >>> x = np.random.default_rng(0).normal(size=(200, 1))
            >>> detector = ScoreOutlierDetector(max_steps=200, random_state=0).fit(np.hstack([x, x]))
            >>> detector.counterfactuals([[0.0, 9.0]])[["column", "outlier"]]
              column  outlier
            0      1    False
        """
        check_is_fitted(self)
        check_size("counterfactuals", columns=columns)
        modelled, constants = self.encode_rows(X)
        contributions = self._with_medians(self._contributions(modelled, constants).mean(0))
        excess = np.where(np.isnan(constants), np.inf, contributions - self.median_contributions_)
        lowest = np.argsort(excess, 1)[:, :columns]
        conditionals = self.conditionals_of_values(modelled, known_places(constants, lowest))
        changes = best_changes(self.columns_, self.scores_of_encoded, modelled, constants, conditionals)
        frame = frame_of_changes(self.columns_, changes, contributions.sum(1), is_native(X))
        if isinstance(X, pd.DataFrame):
            frame.index = X.index
        frame["outlier"] = frame["score"] < self.offset_
        return to_native(frame, X, keep_types=False) if is_native(X) else frame

    def conditionals_of_values(
        self, modelled: Tensor, places: Sequence[tuple[int, int]], share: float = 0.9
    ) -> ConditionalsByPlace:
        """Return the conditionals of known values given all others of their rows, in the order of their places.

        Arguments:
            modelled: Numbers of the modelled columns, ``(N, M)``.
            places: The row and the column of each value.
            share: Of a column's held-out values, those among the expected ones.
        """
        found: dict[tuple[int, int], ValueConditional | None] = dict.fromkeys(places)
        varying = [(row, d) for row, d in places if d in self.columns_.modelled]
        if varying:
            assert self.model_ is not None
            rows, columns = np.array([(row, self.columns_.modelled.index(d)) for row, d in varying]).T
            conditionals = value_conditionals(self.model_, self.limits_, modelled, rows, columns)
            for place, m, conditional in zip(varying, columns, conditionals, strict=True):
                found[place] = replace(conditional, share=self.interval_calibration_.likely_share(int(m), share))
        return found

    def expected(self, X: Any, share: float = 0.9) -> tuple[Any, Any]:
        """Return the central interval of each value given all other known values of its row.

        About a ``share`` of the values of normal rows lie within theirs: held-out rows calibrate the intervals of
        numbers. An interval lies within the range of the column in the other fitted rows, without gross errors.

        Arguments:
            X: Rows.
            share: Probability of the interval.

        Returns:
            Lower and upper bounds, in the format of the fitted table and with the library and index of a frame ``X``.
            Categories are in their declared order, or else in that of their frequency.
        """
        modelled, _ = self.encode_rows(X)
        if not 0.0 < share < 1.0:
            raise ValueError(f"share: expected a number between 0 and 1, got {share}")
        bounds, limits = [], self.limits_.of_other_rows(modelled.numpy())
        with track("expected values", 2) as work:
            shares = torch.tensor(
                [self.interval_calibration_.central_share(m, share) for m in range(modelled.shape[1])]
            )
            for u in work.over((0.5 * (1.0 - shares), 0.5 * (1.0 + shares))):
                numbers = modelled if self.model_ is None else self.model_.quantiles(modelled, u)
                rows = self.columns_.decode(np.clip(numbers.numpy(), *limits))
                if isinstance(rows, pd.DataFrame) and isinstance(X, pd.DataFrame):
                    bounds.append(rows.set_axis(X.index, axis=0))
                elif isinstance(rows, pd.DataFrame) and is_native(X):
                    bounds.append(to_native(rows, X))
                else:
                    bounds.append(self._as_fitted(rows))
        return bounds[0], bounds[1]


def _reference_rows(known: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return random rows that stand for all of ``known (N, D)``, in ascending order.

    A column that none of them knows adds some of the rows that know it.
    """
    random = np.random.default_rng(0)
    rows = random.choice(len(known), min(len(known), _MAX_REFERENCE_ROWS), replace=False)
    for d in np.flatnonzero(~known[rows].any(0)):
        rows = np.append(rows, np.flatnonzero(known[:, d])[:_RARELY_KNOWN_ROWS])
    return np.unique(rows)


def _check_contamination(contamination: Any) -> None:
    if contamination != "auto" and (isinstance(contamination, str) or not 0.0 < contamination <= 0.5):
        raise ValueError(f'contamination: expected "auto" or a number in (0, 0.5], got {contamination!r}')
