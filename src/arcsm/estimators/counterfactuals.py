"""Counterfactual explanations of outliers: the change of a single value that makes its row most likely.

The value becomes the most likely one given all others of its row.

References:
    Counterfactual Explanations without Opening the Black Box (Wachter, Mittelstadt and Russell, 2017)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from arcsm.estimators.column_types import Array, Constant
from arcsm.estimators.encoder import Columns
from arcsm.estimators.times import value_text
from arcsm.estimators.value_conditionals import ValueConditional

#: By row and column, the conditional of a value given all others of its row; ``None`` in a constant column.
ConditionalsByPlace = Mapping[tuple[int, int], ValueConditional | None]


@dataclass(frozen=True)
class Change:
    """The change of one value of a row.

    Attributes:
        column: Its column.
        number: The number of its new value; 0 in a constant column.
        score: The score of the changed row.
    """

    column: int
    number: float
    score: float

    def new_value(self, columns: Columns) -> Any:
        """Return the new value, in the format of its column."""
        return next(iter(columns.kinds[self.column].decode(np.array([self.number]))))


def known_places(constants: Array, chosen: NDArray[np.intp]) -> list[tuple[int, int]]:
    """Return row and column of the known values in the ``chosen (N, K)`` columns of each row.

    Missing values are NaN in ``constants (N, D)``; see ``encode_rows``.
    """
    return [(row, int(d)) for row, places in enumerate(chosen) for d in places if not np.isnan(constants[row, d])]


def best_changes(
    columns: Columns,
    scores_of: Callable[[Tensor, Array], Array],
    numbers: Tensor,
    constants: Array,
    conditionals: ConditionalsByPlace,
) -> dict[int, Change]:
    """Return for each row the change with the highest score, of the values with these conditionals.

    Arguments:
        columns: Those of the table.
        scores_of: Returns the scores of encoded rows, ``(N,)``.
        numbers: Numbers of the modelled columns, ``(N, M)``.
        constants: Log probabilities of the constant columns, ``(N, D)``; see ``encode_rows``.
        conditionals: Those of the values that may change.
    """
    places = list(conditionals)
    if not places:
        return {}
    rows = np.array([row for row, _ in places])
    changed, changed_constants = numbers[rows].clone(), constants[rows].copy()
    new = np.zeros(len(places))
    for place, (_, d) in enumerate(places):
        conditional = conditionals[places[place]]
        kind = columns.kinds[d]
        if conditional is None:
            assert isinstance(kind, Constant)
            changed_constants[place, d] = kind.log_prob(np.zeros(1))[0]
        else:
            new[place] = conditional.most_likely
            changed[place, columns.modelled.index(d)] = float(new[place])
    scores = scores_of(changed, changed_constants)
    found: dict[int, Change] = {}
    for (row, d), number, score in zip(places, new, scores, strict=True):
        if row not in found or score > found[row].score:
            found[row] = Change(d, float(number), float(score))
    return found


def frame_of_changes(columns: Columns, changes: Mapping[int, Change], scores: Array, as_text: bool) -> pd.DataFrame:
    """Return ``column``, new ``value`` and ``score`` of the change of each row; of others, their ``scores (N,)``.

    Values are objects of the types of their columns, or all ``as_text``.
    """
    names, values, scores = np.full(len(scores), None), np.full(len(scores), None), scores.copy()
    for row, change in changes.items():
        value = change.new_value(columns)
        names[row], scores[row] = columns.labels[change.column], change.score
        values[row] = value_text(value) if as_text else value
    objects = {name: pd.Series(found, dtype=object) for name, found in (("column", names), ("value", values))}
    return pd.DataFrame({**objects, "score": scores})
