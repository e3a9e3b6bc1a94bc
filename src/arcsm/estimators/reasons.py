"""Reasons in words why a detector finds rows surprising.

A value is a reason if it lies outside the values that the detector expects in its place: the most likely ones that
together hold 90 % of the probability, given all other values of the row. For numbers, held-out rows calibrate that
probability. Values outside the :class:`ValueLimits` of the other rows are never expected, so that neither a row's own
value nor a gross error in the training rows makes itself expected.
"""

from itertools import combinations
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from arcsm.estimators.column_types import Array, Categories, Column
from arcsm.estimators.counterfactuals import ConditionalsByPlace, best_changes, known_places
from arcsm.estimators.outliers import ScoreOutlierDetector
from arcsm.estimators.times import value_text
from arcsm.estimators.value_conditionals import ValueConditional

_EXPECTED = 0.9  # of the probability
_MIN_SURPRISE = 1.0  # nats below the median, of a further reason
_MIN_RELATIVE_SURPRISE = 0.1  # of the most surprising column
_MAX_LISTED = 4  # categories or intervals
_DIGITS = (4, 6, 9, 17)  # of a number, as many as necessary
_PAIRED_COLUMNS = 6  # the most surprising ones, of which two may be a reason together


def reasons(
    detector: ScoreOutlierDetector, table: pd.DataFrame, excess: Array, conditionals: ConditionalsByPlace
) -> list[str]:
    """Return for each row a text such as "income: expected 0.2 to 1.1, saw 7.9; city: expected Rome, saw Oslo".

    Only values with ``conditionals`` can be reasons, the most surprising ones of each row first. If all of them are
    expected, the reason is the most surprising pair of values, such as "age = 70 with income = 2.1: a less likely pair
    than in 98 % of the fitted rows".

    Arguments:
        detector: A fitted detector.
        table: Rows.
        excess: Their contributions minus the medians, ``(N, D)``.
        conditionals: See :func:`conditionals_by_place`.
    """
    parts: list[list[str]] = [[] for _ in range(len(table))]
    for (row, d), conditional in conditionals.items():
        limit = min(-_MIN_SURPRISE, _MIN_RELATIVE_SURPRISE * float(excess[row].min()))
        if excess[row, d] <= limit or not parts[row]:
            expected, seen = expected_and_seen(detector.columns_.kinds[d], conditional, table.iloc[row, d])
            if expected:
                parts[row].append(f"{table.columns[d]}: expected {expected}, saw {seen}")
    return ["; ".join(found) or _joint_reason(detector, table.iloc[k], excess[k]) for k, found in enumerate(parts)]


def changes(
    detector: ScoreOutlierDetector, table: pd.DataFrame, conditionals: ConditionalsByPlace, threshold: float
) -> list[str]:
    """Return for each row the single change that makes it ordinary, such as "income: 1000000 -> 16800".

    Values with ``conditionals`` can change, each to the most likely one given all others of its row. The text is empty
    if no change raises the score of the row to the ``threshold``.
    """
    found = best_changes(detector.columns_, detector.scores_of_encoded, *detector.encode_rows(table), conditionals)
    texts = [""] * len(table)
    for row, change in found.items():
        if change.score < threshold:
            continue
        value, new = table.iloc[row, change.column], change.new_value(detector.columns_)
        pairs = ((value_text(value, digits), value_text(new, digits)) for digits in _DIGITS)
        for before, after in pairs:
            if before != after:
                texts[row] = f"{table.columns[change.column]}: {before} -> {after}"
                break
    return texts


def conditionals_by_place(
    detector: ScoreOutlierDetector, table: pd.DataFrame, chosen: NDArray[np.intp]
) -> ConditionalsByPlace:
    """Return the conditionals of the known values in the ``chosen (N, K)`` columns of each row, in this order."""
    modelled, constants = detector.encode_rows(table)
    return detector.conditionals_of_values(modelled, known_places(constants, chosen), _EXPECTED)


def expected_and_seen(kind: Column, conditional: ValueConditional | None, value: Any) -> tuple[str, str]:
    """Return the expected values and the value, with enough digits to tell them apart.

    The first is empty if the value is expected. A constant column has no conditional.
    """
    if conditional is None:
        is_other = bool(kind.encode(np.array([value], dtype=object))[0])
        return value_text(kind.decode(np.zeros(1))[0]) if is_other else "", value_text(value)
    if isinstance(kind, Categories):
        levels = [level for level in conditional.expected_levels() if level < len(kind.names)]
        return " or ".join(str(kind.names[level]) for level in levels[:_MAX_LISTED]), str(value)
    bounds = np.asarray(kind.decode(conditional.expected_intervals().flatten())).reshape(-1, 2)
    for digits in _DIGITS:
        seen, ends = (
            value_text(value, digits),
            [[value_text(end, digits) for end in pair] for pair in bounds[:_MAX_LISTED]],
        )
        if not isinstance(value, Real) or not any(float(low) <= float(seen) <= float(high) for low, high in ends):
            break
    return " or ".join(low if low == high else f"{low} to {high}" for low, high in ends), seen


def _joint_reason(detector: ScoreOutlierDetector, row: pd.Series, excess: Array) -> str:
    """Return the pair of known values, the sum of whose contributions most fitted rows surpass."""
    known = [d for d in np.argsort(excess) if not pd.isna(row.iloc[d])][:_PAIRED_COLUMNS]
    groups = [list(pair) for pair in combinations(known, 2)] or [[d] for d in known]
    if not groups:
        return ""
    fitted = detector.fitted_excess_
    shares = [float((fitted[:, group].sum(1) > excess[group].sum()).mean()) for group in groups]
    best = int(np.argmax(shares))
    values = " with ".join(f"{row.index[d]} = {value_text(row.iloc[d])}" for d in groups[best])
    less_likely = "a less likely pair" if len(groups[best]) > 1 else "less likely"
    return f"{values}: {less_likely} than in {int(100.0 * shares[best])} % of the fitted rows"
