"""Outliers in a table: a line for each row with its score, p-value and reasons, and a summary of a long table."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd

from arcsm._runtime.progress import track
from arcsm.estimators.column_types import Array
from arcsm.estimators.outliers import ScoreOutlierDetector
from arcsm.estimators.reasons import changes, conditionals_by_place, reasons

TOP_COLUMNS = 3  # most surprising columns that are listed for each row
#: The columns of :func:`detection_table`.
DETECTION_COLUMNS = (
    *("row", "score", "p_value", "outlier"),
    *(f"{what}_{rank}" for rank in range(1, TOP_COLUMNS + 1) for what in ("column", "contribution")),
    *("because", "change"),
)
_MOST_SURPRISING = 20  # rows
_EXPLAINING_TIME = 0.3  # of the outliers among some rows, relative to scoring the rows; sets the pace of progress bars


def detection_table(
    detector: ScoreOutlierDetector, table: pd.DataFrame, threshold: float | None = None, first: int = 0
) -> pd.DataFrame:
    """Return a line for each row: score, p-value, flag, most surprising columns with contributions, reasons, changes.

    Rows with at most the p-value ``threshold`` are flagged or, without one, rows below the detector's own threshold.
    Rows are counted from 1, after ``first`` earlier rows if the table is a part of another.
    """
    if threshold:  # 0 selects none
        check_p_value(threshold, len(detector.held_out_scores_))
    with track("scoring", _EXPLAINING_TIME + 1) as work, work.part(1):
        contributions = np.ascontiguousarray(detector.explain(table).to_numpy())  # sums do not depend on the layout
    scores = contributions.sum(1)
    p = detector.p_values_from_scores(scores)
    outlier = scores < detector.offset_ if threshold is None else p <= threshold
    lines = pd.DataFrame({"row": first + 1 + np.arange(len(table)), "score": scores, "p_value": p, "outlier": outlier})
    excess = contributions - detector.median_contributions_
    lowest = np.argsort(excess, 1)[:, :TOP_COLUMNS]
    names = np.array([str(name) for name in table.columns])
    for rank in range(lowest.shape[1]):
        lines[f"column_{rank + 1}"] = names[lowest[:, rank]]
        lines[f"contribution_{rank + 1}"] = np.take_along_axis(excess, lowest[:, rank : rank + 1], 1)[:, 0]
    because, change = (np.full(len(table), "", dtype=object) for _ in range(2))
    flagged = np.flatnonzero(outlier)
    if len(flagged):
        limit = detector.offset_ if threshold is None else detector.score_of_p_value(threshold)
        rows = table.iloc[flagged]
        with track("explaining", _EXPLAINING_TIME + 1, done=1) as work, work.part(_EXPLAINING_TIME):
            conditionals = conditionals_by_place(detector, rows, lowest[flagged])
            because[flagged] = reasons(detector, rows, excess[flagged], conditionals)
            change[flagged] = changes(detector, rows, conditionals, limit)
    lines["because"], lines["change"] = because, change
    return lines


def check_p_value(threshold: float, held_out: int) -> None:
    """Check that a number of held-out rows can resolve a p-value."""
    smallest = 1.0 / (1.0 + held_out)
    if threshold < smallest:
        raise ValueError(
            f"p-value: expected at least {smallest:.3g} (of {held_out} held-out rows), got {threshold:g}; fit to more "
            "rows, or set a contamination instead"
        )


@dataclass
class DetectionResult:
    """The outliers of a table that was scored in parts: all scores, and the most surprising rows."""

    scores: Array  # of all rows, (N,)
    outliers: int  # their number
    lowest: pd.DataFrame  # lines of `detection_table` of the most surprising rows, the lowest score first
    rows: pd.DataFrame  # those rows, in the same order
    threshold: float  # outliers have lower scores

    @classmethod
    def from_parts(
        cls,
        detector: ScoreOutlierDetector,
        parts: Iterable[pd.DataFrame],
        threshold: float | None = None,
        write: Callable[[pd.DataFrame], None] | None = None,
    ) -> Self:
        """Score consecutive parts of a table as :func:`detection_table`; ``write`` receives the lines of each part."""
        scores: list[Array] = []
        count, outliers = 0, 0
        lowest, rows = pd.DataFrame(), pd.DataFrame()
        for part in parts:
            lines = detection_table(detector, part, threshold, count)
            if write is not None:
                write(lines)
            count, outliers = count + len(part), outliers + int(lines["outlier"].sum())
            scores.append(lines["score"].to_numpy())
            lowest = pd.concat([lowest, lines], ignore_index=True) if len(lowest) else lines
            rows = pd.concat([rows, part], ignore_index=True) if len(rows) else part
            order = lowest["score"].sort_values(kind="stable").index[:_MOST_SURPRISING]
            lowest, rows = lowest.loc[order].reset_index(drop=True), rows.iloc[order].reset_index(drop=True)
        score = detector.offset_ if threshold is None else detector.score_of_p_value(threshold)
        return cls(np.concatenate(scores), outliers, lowest, rows, float(score))
