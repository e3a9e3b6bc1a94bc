"""Scores of normal rows, and the p-values that others have by them."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from arcsm.estimators.column_types import Array
from arcsm.estimators.false_discoveries import (
    check_weights,
    selection_threshold,
    weighted_p_values,
    weighted_selection,
)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores of normal rows that the fit has not seen; low scores are outlying.

    Attributes:
        scores: In ascending order, ``(C,)``.
        weights: Density ratios of new rows over these rows at each of them, up to a factor, ``(C,)``.
    """

    scores: Array
    weights: Array

    @classmethod
    def of(cls, scores: Array, weights: Any = None) -> Self:
        """Return the calibration by rows with these scores and weights, in any order.

        Raises:
            ValueError: If weights are negative or no numbers, or all are zero.
        """
        weights = np.ones(len(scores)) if weights is None else check_weights("weights", weights, len(scores))
        if len(weights) and not weights.any():
            raise ValueError("weights: expected some that are positive")
        order = np.argsort(scores)
        return cls(scores[order], weights[order])

    def p_values(self, scores: Array, weights: Any = None) -> Array:
        """Return the p-values of rows with these scores, ``(N,)``.

        Raises:
            ValueError: If the calibrating rows have different weights and these rows none.
        """
        if weights is None and len(np.unique(self.weights)) > 1:
            raise ValueError("weights: expected those of the rows, because those that calibrate the p-values have some")
        usual = float(self.weights.max(initial=0.0)) or 1.0  # that of all rows
        new = usual if weights is None else check_weights("weights", weights, len(scores))
        return weighted_p_values(scores, new, self.scores, self.weights)

    def select(self, scores: Array, fdr: float, weights: Any = None) -> NDArray[np.bool_]:
        """Return which rows are selected so that at most a share ``fdr`` of these is expected to be normal, ``(N,)``.

        Raises:
            ValueError: As in :meth:`p_values`, or if ``fdr`` is out of reach.
        """
        if weights is not None:
            new = check_weights("weights", weights, len(scores))
            return weighted_selection(scores, new, self.scores, self.weights, fdr)
        p = self.p_values(scores)
        return p <= selection_threshold(p, fdr, len(self.scores))

    def threshold(self, p_value: float) -> float:
        """Return the score below which the p-values of rows of mean weight are at most ``p_value``."""
        typical = self.weights.mean() if len(self.weights) else 1.0
        p_values = (typical + np.concatenate([[0.0], np.cumsum(self.weights)])) / (typical + self.weights.sum())
        thresholds = np.concatenate([[-np.inf], self.scores, [np.inf]])
        return float(thresholds[np.searchsorted(p_values, p_value * (1.0 + 1e-12), side="right")])
