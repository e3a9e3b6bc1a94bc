"""Reasons in words why a detector finds rows surprising.

A value is a reason if it lies outside the values that the detector expects in its place: the most likely ones that
together hold 90 % of the probability, given all other values of the row. For numbers, held-out rows calibrate that
probability. Values outside the :class:`ValueLimits` of the
other rows are never expected, so that neither a row's own value nor a gross error in the training rows makes itself
expected.
"""

from dataclasses import dataclass
from itertools import combinations
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from arcsm.estimators.column_types import Array, Categories, Column
from arcsm.estimators.outliers import ScoreOutlierDetector
from arcsm.estimators.times import value_text

_EXPECTED = 0.9  # of the probability
NODES = 40  # quantiles that represent a conditional
_ROUNDING = 1e-6  # nats
_MIN_SURPRISE = 1.0  # nats below the median, of a further reason
_MIN_RELATIVE_SURPRISE = 0.1  # of the most surprising column
_MAX_LISTED = 4  # categories or intervals
_DIGITS = (4, 6, 9, 17)  # of a number, as many as necessary
_PAIRED_COLUMNS = 6  # the most surprising ones, of which two may be a reason together


@dataclass(frozen=True)
class Conditional:
    """The conditional of one value of a row.

    Attributes:
        nodes: Equally likely numbers in ascending order, ``(K,)``; in a discrete column, numbers that occur.
        log_density: Their log densities, ``(K,)``.
        number: The number of the row's value.
        log_density_here: Its log density.
        share: Share of the nodes that are expected.
    """

    nodes: Array
    log_density: Array
    number: float
    log_density_here: float
    share: float = _EXPECTED

    @property
    def _likely(self) -> NDArray[np.bool_]:
        """Which nodes are among the most likely ones, unless the value is."""
        unexpected = int((1.0 - self.share) * len(self.nodes) + _ROUNDING)
        threshold = np.sort(self.log_density)[unexpected]
        return (self.log_density >= threshold - _ROUNDING) & (self.log_density_here < threshold - _ROUNDING)

    def expected_levels(self) -> list[int]:
        """Return the expected levels of a discrete column, the most likely first; none if the value is expected."""
        levels, counts = np.unique(self.nodes[self._likely], return_counts=True)
        return levels[np.argsort(-counts, kind="stable")].astype(int).tolist()

    def expected_intervals(self) -> Array:
        """Return the intervals of expected numbers, which leave out the value, ``(R, 2)``; none if it is expected."""
        places = np.flatnonzero(self._likely)
        if not len(places):
            return np.empty((0, 2))
        low, high = self.nodes[places[:-1]], self.nodes[places[1:]]
        ends = np.flatnonzero((np.diff(places) > 1) | (low < self.number) & (self.number < high))
        first, last = np.append(0, ends + 1), np.append(ends, len(places) - 1)
        return np.stack([self.nodes[places[first]], self.nodes[places[last]]], 1)


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
) -> list[Conditional]:
    """Return the conditionals of the values in these rows and modelled columns, ``(I,)`` each."""
    model = detector.model_
    assert model is not None
    numbers, _ = detector.encode_rows(table)  # (N, M)
    low, high = (limit[rows, columns] for limit in detector.limits_.of_other_rows(numbers.numpy()))
    x, d, here = numbers[rows], torch.from_numpy(columns), numbers[rows, columns].numpy()
    u = (torch.arange(NODES, dtype=torch.float64) + 0.5) / NODES
    quantiles = model.conditional_quantiles(x, d, u).numpy()  # (I, K)
    nodes = np.stack([detector.limits_.nearest_levels(*pair) for pair in zip(columns, quantiles, strict=True)])
    values = torch.from_numpy(np.concatenate([nodes, here[:, None]], 1))
    log_densities = model.conditional_log_density(x, d, values).numpy()  # (I, K + 1)
    found = []
    for place, (one, log_density) in enumerate(zip(nodes, log_densities, strict=True)):
        inside = (low[place] <= one) & (one <= high[place])
        kept, density, density_here = one[inside], log_density[:-1][inside], log_density[-1]
        if not inside.any():  # the conditional expects gross errors alone
            kept, density, density_here = np.array([low[place], high[place]]), np.zeros(2), 0.0
        if not low[place] <= here[place] <= high[place]:
            density_here = -np.inf
        share = detector.calibrated_share(int(columns[place]), _EXPECTED)
        found.append(Conditional(kept, density, float(here[place]), float(density_here), share))
    return found


def expected_text(kind: Column, conditional: Conditional, value: Any) -> str:
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
