"""The density of targets given the features of a row and hints: what a forest of trees predicts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import KFold

from arcsm.estimators.column_inference import fit_continuous
from arcsm.estimators.column_types import Array, Column, Constant
from arcsm.estimators.density_estimator import DensityEstimator, Rows
from arcsm.estimators.forest import Forest

_FOLDS, _TREES_OF_FOLD = 10, 100  # of the training rows


class HintedDensity(DensityEstimator):
    """The density of a table whose last columns, the targets, are conditional on hints, too.

    The hint of a target is its mean by a forest (stacking). Trees find what a small network finds late or never: rows
    that nearly repeat, steps, and interactions of few features. The network learns the distribution around them, and
    where to trust them. In training, hints come from trees that have not seen the row, and half of the rows have none:
    otherwise the network would learn little else.

    References:
        Stacked generalization (Wolpert, 1992)
    """

    _forest: Forest | None  # `None` if no feature varies, or no target

    def _prepare(self, X: Any, targets: int | None = None) -> tuple[Array, Rows, Rows, int]:
        """Also grow the forest, and insert columns of its predictions before the targets."""
        assert targets is not None
        numbers, train, held_out, seed = super()._prepare(X, targets)
        self._forest = None
        first, modelled = numbers.shape[1] - targets, self.columns_.modelled
        if not modelled or modelled[0] >= first or modelled[-1] < first:
            return numbers, train, held_out, seed
        x, y, kinds = numbers[:, :first], numbers[:, first:], self.columns_.kinds[:first]
        predicted = np.empty_like(y)
        predicted[held_out] = Forest.grow(kinds, x[train], y[train], seed).predict(x[held_out])  # as new rows are
        predicted[train] = unseen = _out_of_fold(kinds, x[train], y[train], seed)
        self._forest = Forest.grow(kinds, x, y, seed)
        self.columns_ = self.columns_.with_numbers(first, "hint", [_kind(hints) for hints in unseen.T])
        return np.concatenate([x, self._encoded(predicted), y], 1), train, held_out, seed

    @property
    def _hints(self) -> int:
        return 0 if self._forest is None else self._forest.targets

    def _hints_of(self, features: Array) -> Array:
        return super()._hints_of(features) if self._forest is None else self._encoded(self._forest.predict(features))

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
    folds = KFold(min(_FOLDS, len(x)), shuffle=True, random_state=seed)
    for others, fold in folds.split(x):
        found[fold] = Forest.grow(kinds, x[others], y[others], seed, _TREES_OF_FOLD).predict(x[fold])
    return found


def _kind(hints: Array) -> Column:
    """Return the type of a column of hints ``(N,)``."""
    return fit_continuous(hints, linear=True) if np.ptp(hints) else Constant(float(hints[0]), len(hints))
