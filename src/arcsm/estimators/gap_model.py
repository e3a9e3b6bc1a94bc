"""Where synthetic rows have gaps: the pattern of missing values given a complete row."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from arcsm.estimators.column_types import Array
from arcsm.stored_values import stored

_GROUPS = 10  # of the values of a column
_MOST_ROWS = 20_000
_PENALTIES = (0.01, 0.1, 1.0)  # inverse strengths of the ridge, of which held-out rows choose
_FEWEST = 5  # rows with a gap, and without, from which on a gap may depend on anything


@stored
@dataclass(frozen=True)
class _Regression:
    """The probability of a gap as a logistic function of inputs."""

    weights: Array
    intercept: float

    def probability(self, inputs: Array) -> Array:
        return np.asarray(expit(inputs @ self.weights + self.intercept))


@stored
@dataclass(frozen=True)
class GapModel:
    """The probabilities of gaps, one column after another.

    A gap of a column depends on the groups of the values of the other columns, about ten for each, and on the gaps of
    the columns before it, by a logistic regression. Columns whose gaps are in the same rows have one model.

    Attributes:
        ends: The ends between the groups of the values of each column.
        columns: The columns that have gaps, the first of those with the same ones.
        same: The first column with the same gaps, for each column that has gaps.
        models: A regression for each of ``columns``, or the share of rows in which it has a gap.
    """

    ends: tuple[Array, ...]
    columns: tuple[int, ...]
    same: dict[int, int]
    models: dict[int, _Regression | float]

    def check_read(self) -> None:
        """Check a model that was read from a file."""
        known = range(len(self.ends))
        places = (*self.columns, *self.same, *self.same.values(), *self.models)
        if not all(m in known for m in places) or set(self.columns) != set(self.models):
            raise ValueError("GapModel: columns and regressions do not fit together")

    @classmethod
    def of_rows(cls, rows: Array, held_out: NDArray[np.intp]) -> Self | None:
        """Return the model of rows ``(N, M)``, NaN where a value is missing; ``None`` if they have no gaps.

        The ``held_out`` ones choose penalties.
        """
        if not np.isnan(rows).any():
            return None
        is_held_out = np.zeros(len(rows), dtype=bool)
        is_held_out[held_out] = True
        some = slice(None, None, -(-len(rows) // _MOST_ROWS))  # of a table that may be sorted
        rows, is_held_out = rows[some], is_held_out[some]
        gaps = np.isnan(rows)
        same, columns = dict[int, int](), list[int]()
        for m in np.flatnonzero(gaps.any(0)).tolist():
            first = next((one for one in columns if bool((gaps[:, one] == gaps[:, m]).all())), m)
            same[m] = first
            columns += [m] if first == m else []
        found = cls(tuple(_ends(column) for column in rows.T), tuple(columns), same, {})
        groups = found._groups(rows)
        for place, m in enumerate(columns):
            inputs = found._inputs(groups, gaps, m, columns[:place])
            found.models[m] = _fitted(inputs, gaps[:, m], is_held_out)
        return found

    def draw(self, rows: Array, random: np.random.Generator) -> Array:
        """Return complete rows ``(N, M)`` with gaps (NaN)."""
        groups, gaps = self._groups(rows), np.zeros(rows.shape, dtype=bool)
        for place, m in enumerate(self.columns):
            model = self.models[m]
            inputs = self._inputs(groups, gaps, m, self.columns[:place])
            share = model.probability(inputs) if isinstance(model, _Regression) else model
            gaps[:, m] = random.random(len(rows)) < share
        for m, first in self.same.items():
            gaps[:, m] = gaps[:, first]
        return np.where(gaps, np.nan, rows)

    def _groups(self, rows: Array) -> list[Array]:
        """Return which group each value is in, for each column ``(N, G)``; none if it is missing."""
        found = []
        for column, ends in zip(rows.T, self.ends, strict=True):
            index = np.searchsorted(ends, column)
            found.append(np.eye(len(ends) + 1)[index] * ~np.isnan(column)[:, None])
        return found

    def _inputs(self, groups: list[Array], gaps: NDArray[np.bool_], m: int, before: Sequence[int]) -> Array:
        others = [group for d, group in enumerate(groups) if self.same.get(d, d) != m]
        return np.concatenate([*others, gaps[:, list(before)].astype(float)], 1)


def _ends(column: Array) -> Array:
    """Return the ends between about ten groups of the known values of a column."""
    known = column[~np.isnan(column)]
    if not len(known):
        return np.zeros(0)
    return np.unique(np.quantile(known, np.linspace(0.0, 1.0, _GROUPS + 1)[1:-1], method="nearest"))


def _fitted(inputs: Array, gap: NDArray[np.bool_], is_held_out: NDArray[np.bool_]) -> _Regression | float:
    """Return a regression of gaps on inputs, or the share of gaps if that gives held-out rows more probability."""
    share, train = float(gap.mean()), ~is_held_out
    enough = min(gap[train].sum(), (~gap[train]).sum()) >= _FEWEST
    if not enough or not is_held_out.any():
        return share

    def fit(penalty: float, rows: NDArray[np.bool_]) -> _Regression:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = LogisticRegression(C=penalty, max_iter=300).fit(inputs[rows], gap[rows])
        return _Regression(found.coef_[0], float(found.intercept_[0]))

    def loss(probability: Array) -> float:
        probability = np.clip(np.where(gap[is_held_out], probability, 1.0 - probability), 1e-6, 1.0)
        return float(-np.log(probability).mean())

    losses = [loss(fit(one, train).probability(inputs[is_held_out])) for one in _PENALTIES]
    constant = loss(np.full(int(is_held_out.sum()), float(gap[train].mean())))
    if min(losses) >= constant:
        return share
    return fit(_PENALTIES[int(np.argmin(losses))], np.ones(len(gap), dtype=bool))
