"""Reasons in words why a detector finds rows surprising.

A value is a reason if it lies outside the values that the detector expects in its place: the most likely ones that
together hold 90 % of the probability, given all other values of the row. For numbers, held-out rows calibrate that
probability. Values outside the :class:`ValueLimits` of the other rows are never expected, so that neither a row's own
value nor a gross error in the training rows makes itself expected.
"""

from dataclasses import replace
from itertools import combinations
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from arcsm.estimators.column_types import Array, Categories, Column
from arcsm.estimators.outliers import ScoreOutlierDetector
from arcsm.estimators.times import value_text
from arcsm.estimators.value_conditionals import ValueConditional, value_conditionals

_EXPECTED = 0.9  # of the probability
_MIN_SURPRISE = 1.0  # nats below the median, of a further reason
_MIN_RELATIVE_SURPRISE = 0.1  # of the most surprising column
_MAX_LISTED = 4  # categories or intervals
_DIGITS = (4, 6, 9, 17)  # of a number, as many as necessary
_PAIRED_COLUMNS = 6  # the most surprising ones, of which two may be a reason together


def reasons(detector: ScoreOutlierDetector, table: pd.DataFrame, excess: Array, columns: int) -> list[str]:
    """Return for each row a text such as "income: expected 0.2 to 1.1, saw 7.9; city: expected Rome, saw Oslo".

    Only the ``columns`` most surprising columns can be reasons, by the ``excess (N, D)`` of their contributions over
    the median. If all of their values are expected, the reason is the most surprising pair of values, such as "age = 70
    with income = 2.1: a less likely pair than in 98 % of the fitted rows".
    """
    lowest = np.argsort(excess, 1)[:, :columns]
    expected = expected_texts(detector, table, lowest)
    texts = []
    for row, places in enumerate(lowest):
        limit = min(-_MIN_SURPRISE, _MIN_RELATIVE_SURPRISE * float(excess[row, places[0]]))
        parts: list[str] = []
        for d in places:
            if (row, d) in expected and (excess[row, d] <= limit or not parts):
                parts.append(f"{table.columns[d]}: {expected[row, d]}")
        texts.append("; ".join(parts) or _joint_reason(detector, table.iloc[row], excess[row]))
    return texts


def expected_texts(
    detector: ScoreOutlierDetector, table: pd.DataFrame, chosen: NDArray[np.intp]
) -> dict[tuple[int, int], str]:
    """Return "expected A, saw B" for the unexpected values in the ``chosen (N, K)`` columns, by row and column."""
    kinds, modelled = detector.columns_.kinds, detector.columns_.modelled
    known = [(row, int(d)) for row, places in enumerate(chosen) for d in places if not pd.isna(table.iloc[row, d])]
    varying = [(row, d) for row, d in known if d in modelled]
    texts = {}
    if varying:
        rows, columns = np.array([(row, modelled.index(d)) for row, d in varying]).T
        for (row, d), conditional in zip(varying, conditionals_of_values(detector, table, rows, columns), strict=True):
            texts[row, d] = expected_text(kinds[d], conditional, table.iloc[row, d])
    for row, d in set(known) - set(varying):
        if kinds[d].encode(np.array([table.iloc[row, d]], dtype=object))[0]:  # not the constant
            texts[row, d] = (
                f"expected {value_text(kinds[d].decode(np.zeros(1))[0])}, saw {value_text(table.iloc[row, d])}"
            )
    return {place: text for place, text in texts.items() if text}


def conditionals_of_values(
    detector: ScoreOutlierDetector, table: pd.DataFrame, rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> list[ValueConditional]:
    """Return the conditionals of the values in these rows and modelled columns, ``(I,)`` each."""
    assert detector.model_ is not None
    numbers, _ = detector.encode_rows(table)  # (N, M)
    found = value_conditionals(detector.model_, detector.limits_, numbers, rows, columns)
    shares = [detector.likely_share(int(m), _EXPECTED) for m in columns]
    return [replace(conditional, share=share) for conditional, share in zip(found, shares, strict=True)]


def expected_text(kind: Column, conditional: ValueConditional, value: Any) -> str:
    """Return "expected A, saw B", with enough digits to tell A and B apart; empty if the value is expected."""
    if isinstance(kind, Categories):
        levels = [level for level in conditional.expected_levels() if level < len(kind.names)]
        names = " or ".join(str(kind.names[level]) for level in levels[:_MAX_LISTED])
        return f"expected {names}, saw {value}" if names else ""
    bounds = np.asarray(kind.decode(conditional.expected_intervals().flatten())).reshape(-1, 2)
    for digits in _DIGITS:
        seen, ends = (
            value_text(value, digits),
            [[value_text(end, digits) for end in pair] for pair in bounds[:_MAX_LISTED]],
        )
        if not isinstance(value, Real) or not any(float(low) <= float(seen) <= float(high) for low, high in ends):
            break
    intervals = [low if low == high else f"{low} to {high}" for low, high in ends]
    return f"expected {' or '.join(intervals)}, saw {seen}" if intervals else ""


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
