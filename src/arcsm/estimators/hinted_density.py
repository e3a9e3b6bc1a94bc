"""The density of targets given the features of a row and hints: what a forest of trees predicts."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.model_selection import KFold

from arcsm._runtime.progress import track
from arcsm.estimators.column_inference import fit_continuous
from arcsm.estimators.column_types import Array, Column, Constant
from arcsm.estimators.density_estimator import DensityEstimator, Rows
from arcsm.estimators.forest import Forest
from arcsm.stored_values import Entries, Reader

_FOLDS, _FOLDS_OF_MANY = 10, 5  # of the training rows, and if there are more than
_MANY_ROWS = 2_000
_MIN_ROWS = 100  # of which trees learn more than noise
_MAX_HELD_OUT = 250  # rows that decide whether there are hints
_TREES_OF_FOLD = 100


class HintedDensity(DensityEstimator):
    """The density of a table whose last columns, the targets, are conditional on hints, too.

    The hint of a target is its mean by a forest (stacking). Trees find what a small network finds late or never: rows
    that nearly repeat, steps, and interactions of few features. The network learns the distribution around them, and
    where to trust them. In training, hints come from trees that have not seen the row, and each row is also shown
    without them: otherwise the network would learn little else. A row with a gap that trees know nothing of has none,
    and so has a table whose held-out targets are more likely without hints.

    References:
        Stacked generalization (Wolpert, 1992)
    """

    _forest: Forest | None  # `None` if no row is given a hint

    def _prepare(self, X: Any, targets: int | None = None) -> tuple[Array, Rows, Rows, int]:
        """Also grow the forest, and insert columns of its predictions before the targets."""
        assert targets is not None
        numbers, train, held_out, seed = super()._prepare(X, targets)
        self._forest = None
        first, modelled = numbers.shape[1] - targets, self.columns_.modelled
        x, y, kinds = numbers[:, :first], numbers[:, first:], self.columns_.kinds[:first]
        has_both = bool(modelled) and modelled[0] < first <= modelled[-1]  # features and targets that vary
        if has_both and len(numbers) >= _MIN_ROWS:
            predicted = np.empty_like(y)
            with track("growing trees", _FOLDS + 2, bool(self.verbose)) as work:
                with work.part(_FOLDS):
                    predicted[train] = _out_of_fold(kinds, x[train], y[train], seed)
                with work.part(1):  # as new rows are predicted
                    predicted[held_out] = Forest.grow(kinds, x[train], y[train], seed).predict(x[held_out])
                known = train[~np.isnan(predicted[train]).any(1)]
                if len(known) >= _MIN_ROWS // 2:
                    self._forest, self._hint_count = Forest.grow(kinds, x, y, seed), targets
            if self._forest is not None:
                types = [_kind(hints) for hints in predicted[known].T]
                self.columns_ = self.columns_.with_numbers(first, "hint", types)
                numbers = np.concatenate([x, self._encoded(predicted), y], 1)
        return numbers, train, held_out, seed

    def _fit_table(self, X: Any, targets: int | None = None) -> Array:
        """Also drop the forest if held-out targets are more likely without its hints."""
        numbers = super()._fit_table(X, targets)
        if self.model_ is None or self._forest is None:
            return numbers
        modelled, first = self.columns_.modelled, numbers.shape[1] - self._hint_count
        rows = self._clip_modelled(numbers[self.held_out_rows_[:_MAX_HELD_OUT]])
        hints = [m for m, d in enumerate(modelled) if first - self._hint_count <= d < first]
        rows = rows[~rows[:, hints].isnan().any(1)]
        without = rows.index_fill(1, torch.tensor(hints, dtype=torch.long), torch.nan)
        last = [m for m, d in enumerate(modelled) if d >= first]
        found = [float(self.model_.log_prob_of_last(one, last).mean()) for one in (rows, without)]
        if not len(rows) or found[0] < found[1]:
            self._forest = None
        return numbers

    @classmethod
    def from_entries(cls, entries: Entries, reader: Reader) -> Self:
        found = super().from_entries(entries, reader)
        forest, hints = found._forest, found._hint_count
        features, of_forest = len(found.columns_.kinds) - 2 * hints, forest and (len(forest.levels), forest.targets)
        if hints < 0 or features < 0 or (forest is not None and (not hints or of_forest != (features, hints))):
            raise ValueError("HintedDensity: expected a column for each feature, hint and target of the forest")
        return found

    def _hints_of(self, features: Array) -> Array:
        if self._forest is None:
            return np.full((len(features), self._hint_count), np.nan)
        return self._encoded(self._forest.predict(features))

    def _encoded(self, predicted: Array) -> Array:
        """Return the numbers of predictions ``(N, T)``, which are those of targets, as hints."""
        count = predicted.shape[1]
        kinds = self.columns_.kinds[-2 * count : -count]
        return np.stack([kind.encode(column) for kind, column in zip(kinds, predicted.T, strict=True)], 1)


def _out_of_fold(kinds: Sequence[Column], x: Array, y: Array, seed: int) -> Array:
    """Return predictions ``(N, T)`` of rows by forests that are grown on the other folds.

    Predictions by the trees of one forest that have not seen a row would tell its target: where many rows have the same
    features, they are the mean of the others, which is the lower the higher the target is.
    """
    found = np.empty_like(y)
    count = min(_FOLDS if len(x) < _MANY_ROWS else _FOLDS_OF_MANY, len(x))
    folds = KFold(count, shuffle=True, random_state=seed)
    with track("growing trees", count) as work:
        for others, fold in work.over(folds.split(x)):
            found[fold] = Forest.grow(kinds, x[others], y[others], seed, _TREES_OF_FOLD).predict(x[fold])
    return found


def _kind(hints: Array) -> Column:
    """Return the type of a column of hints ``(N,)``."""
    return fit_continuous(hints, linear=True) if np.ptp(hints) else Constant(float(hints[0]), len(hints))
