"""Pairs of levels: which values of two columns that have few values occur together."""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from arcsm.estimators.column_types import Array, Categories
from arcsm.estimators.encoder import Columns
from arcsm.stored_values import stored

_MAX_LEVELS = 24  # that occur in a discrete column
_MAX_COLUMNS = 200
_ROWS_AT_A_TIME = 20_000


@stored
@dataclass(frozen=True)
class LevelPairs:
    """The pairs of levels that occur together in some rows, among the categorical and the few-valued discrete columns.

    Arguments:
        columns: Indices of these columns; none if there are more than 200, when nearly every row has a new pair.
        levels: The numbers that occur in each, in order.
        first: Place of each column's first level among the levels of all columns. One more than a column's own levels
            stands for any other.
        together: How many rows have two levels, a sparse matrix ``(L, L)`` with ones on the diagonal.
    """

    columns: tuple[int, ...]
    levels: tuple[Array, ...]
    first: tuple[int, ...]
    together: Any

    @classmethod
    def of_rows(cls, columns: Columns, numbers: Array) -> Self:
        """Count the pairs in encoded rows ``(N, D)``."""
        discrete = {d: kind for d, kind in enumerate(columns.kinds) if kind.discrete}
        occurring = {d: np.unique(np.rint(numbers[~np.isnan(numbers[:, d]), d])) for d in discrete}
        levels = {
            d: found
            for d, found in occurring.items()
            if isinstance(discrete[d], Categories) or len(found) <= _MAX_LEVELS
        }
        levels = levels if len(levels) <= _MAX_COLUMNS else {}
        ends = np.cumsum([0, *(len(found) + 1 for found in levels.values())]).tolist()
        together = sparse.identity(ends[-1], dtype=np.int64, format="csr")
        pairs = cls(tuple(levels), tuple(levels.values()), tuple(ends), together)
        for start in range(0, len(numbers), _ROWS_AT_A_TIME):
            one_hot = pairs._one_hot(numbers[start : start + _ROWS_AT_A_TIME])
            together = together + one_hot.T @ one_hot
        return replace(pairs, together=together)

    def has_unseen_pair(self, numbers: Array) -> NDArray[np.bool_]:
        """Return which encoded rows ``(N, D)`` have a pair of levels that never occurs.

        A missing value has no level.
        """
        found = [np.zeros(0, dtype=bool)]
        occurs = self.together > 0
        for start in range(0, len(numbers), _ROWS_AT_A_TIME):
            levels = self._one_hot(numbers[start : start + _ROWS_AT_A_TIME])
            occurring = np.asarray(levels.multiply(levels @ occurs).sum(1))[:, 0]  # pairs in both orders, and levels
            found.append(occurring < np.asarray(levels.sum(1))[:, 0] ** 2)
        return np.concatenate(found)

    def _one_hot(self, numbers: Array) -> Any:
        """Return which levels each row has, a sparse matrix ``(N, L)``."""
        values = np.rint(numbers[:, list(self.columns)])
        places = np.empty_like(values)
        for place, (levels, first) in enumerate(zip(self.levels, self.first, strict=False)):
            column = values[:, place]
            found = np.searchsorted(levels, column)
            known = np.append(levels, np.nan)[found] == column
            places[:, place] = first + np.where(known, found, len(levels))
        rows, which = np.nonzero(~np.isnan(values))
        ones = np.ones(len(rows), dtype=np.int64)
        return sparse.csr_matrix((ones, (rows, places[rows, which].astype(int))), shape=(len(values), self.first[-1]))
