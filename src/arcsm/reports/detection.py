"""What a detector says of a table, for people: a line for every row, and a page about the most surprising ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from arcsm._runtime.files import write_text
from arcsm.estimators.base import Array
from arcsm.estimators.column_types import Categories, Column, Grid
from arcsm.estimators.encoder import describe
from arcsm.estimators.outliers import ScoreOutlierDetector
from arcsm.reports import plots
from arcsm.reports.run import render

_NAMED = 3  # columns that are named for each row
#: What :func:`verdicts` calls its columns.
VERDICTS = (
    *("row", "score", "p_value", "outlier"),
    *(f"{what}_{place}" for place in range(1, _NAMED + 1) for what in ("column", "contribution")),
    "because",
)
_SHARE_TO_NAME = 0.1  # of the worst column's surprise that another must have to be put into words
_NAMES = 4  # of a column of names that are listed
_ROWS_ON_PAGE = 20
_PICTURED = 8  # rows whose conditional densities are drawn
_GRID = 160


def verdicts(
    detector: ScoreOutlierDetector, table: pd.DataFrame, threshold: float | None = None, first: int = 0
) -> pd.DataFrame:
    """A line for every row: score, p-value, flag, the columns to top_contributions with what they add, and plain words.

    Arguments:
        detector: A fitted detector.
        table: Rows to judge.
        threshold: Flag rows whose p-value is at most this; without it those below the detector's threshold.
        first: Number of the first row, where the table is a part of another.
    """
    if threshold is not None:
        check_p_value(threshold, len(detector.held_out_scores_))
    contributions = detector.explain(table)
    scores = contributions.sum(1)
    p = detector.p_values_of(scores)
    flagged = scores < detector.offset_ if threshold is None else p <= threshold
    found = pd.DataFrame({"row": first + np.arange(len(table)), "score": scores, "p_value": p, "outlier": flagged})
    surprise = contributions - detector.median_contributions_
    worst = np.argsort(surprise, 1)[:, :_NAMED]
    names = np.array([str(name) for name in table.columns])
    for place in range(worst.shape[1]):
        found[f"column_{place + 1}"] = names[worst[:, place]]
        found[f"contribution_{place + 1}"] = np.take_along_axis(surprise, worst[:, place : place + 1], 1)[:, 0]
    words = np.full(len(table), "", dtype=object)
    rows = np.flatnonzero(flagged)
    if len(rows):
        words[rows] = _words(detector, table.iloc[rows], worst[rows], surprise[rows])
    found["because"] = words
    return found


def check_p_value(threshold: float, held_out: int) -> None:
    """So many held-out rows must be able to tell a p-value.

    Raises:
        ValueError: where they are too few.
    """
    least = 1.0 / (1.0 + held_out)
    if threshold < least:
        raise ValueError(
            f"p-value: expected at least {least:.3g} (of {held_out} held-out rows), got {threshold:g}; fit to more "
            "rows, or ask for a share (contamination)"
        )


def _words(detector: ScoreOutlierDetector, table: pd.DataFrame, worst: Any, surprise: Array) -> list[str]:
    """ "income: expected 0.2 to 1.1, saw 7.9", for the columns that speak against each row."""
    low, high = detector.expected(table)
    found = []
    for row in range(len(table)):
        least = min(-1.0, _SHARE_TO_NAME * float(surprise[row, worst[row, 0]]))
        parts: list[str] = []
        for d in worst[row]:
            if not pd.isna(table.iloc[row, d]) and (surprise[row, d] <= least or not parts):
                kind, edges = detector.columns_.kinds[d], (low.iloc[row, d], high.iloc[row, d])
                parts.append(
                    f"{table.columns[d]}: expected {_expected(kind, *edges)}, saw {_as_text(table.iloc[row, d])}"
                )
        found.append("; ".join(parts))
    return found


def _expected(kind: Column, low: Any, high: Any) -> str:
    """What lies between two values, in words: a range of numbers, or the names that there are."""
    if isinstance(kind, Categories):
        places = [kind.names.index(edge) for edge in (low, high)]
        return " or ".join(str(name) for name in kind.names[places[0] : places[1] + 1][:_NAMES])
    first, last = _as_text(low), _as_text(high)
    return first if first == last else f"{first} to {last}"


def _as_text(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "nothing" if np.isnan(value) else f"{value:.4g}"
    return "nothing" if value is None else str(value)


# The page -----------------------------------------------------------------------------------------------------------


@dataclass
class DetectionResult:
    """What is kept of a table that was judged part by part: all scores, and the most surprising rows.

    Attributes:
        scores: Of all rows, ``(N,)``.
        flagged: How many are outliers.
        worst: Verdicts of the most surprising rows, the lowest score first.
        rows: Those rows, in the same order.
    """

    scores: Array
    flagged: int
    worst: pd.DataFrame
    rows: pd.DataFrame

    @classmethod
    def of(
        cls,
        detector: ScoreOutlierDetector,
        parts: Iterable[pd.DataFrame],
        threshold: float | None = None,
        write: Callable[[pd.DataFrame], None] | None = None,
    ) -> DetectionResult:
        """Judge the parts of a table, one after the other.

        Arguments:
            detector: A fitted detector.
            parts: Of the table.
            threshold: As in :func:`verdicts`.
            write: Takes the verdicts of every part.
        """
        scores: list[Array] = []
        judged, flagged = 0, 0
        worst, rows = pd.DataFrame(), pd.DataFrame()
        for part in parts:
            found = verdicts(detector, part, threshold, judged)
            if write is not None:
                write(found)
            judged, flagged = judged + len(part), flagged + int(found["outlier"].sum())
            scores.append(found["score"].to_numpy())
            worst = pd.concat([worst, found], ignore_index=True) if len(worst) else found
            rows = pd.concat([rows, part], ignore_index=True) if len(rows) else part
            order = worst["score"].sort_values(kind="stable").index[:_ROWS_ON_PAGE]
            worst, rows = worst.loc[order].reset_index(drop=True), rows.iloc[order].reset_index(drop=True)
        return cls(np.concatenate(scores), flagged, worst, rows)


def write_detection_report(detector: ScoreOutlierDetector, judged: DetectionResult, path: Path, title: str) -> None:
    """Write the page: how scores are spread, the most surprising rows, and what was to be expected of them.

    Arguments:
        detector: A fitted detector.
        judged: What it said of a table.
        path: The page.
        title: Its heading.
    """
    flagged = np.flatnonzero(judged.worst["outlier"])[:_PICTURED].tolist()
    pictures = [
        (f"Row {verdict['row']}: score {verdict['score']:.2f}, p = {verdict['p_value']:.2g}",
         plots.as_data_uri(plots.as_png(_conditionals(detector, judged.rows.iloc[[place]], verdict))))
        for place, verdict in ((place, judged.worst.iloc[place]) for place in flagged)
    ]  # fmt: skip
    page = render(
        "detect.html",
        title=title,
        rows=len(judged.scores),
        flagged=judged.flagged,
        fitted=len(detector.fitted_scores_),
        columns=describe(detector.columns_.kinds),
        spread=plots.as_data_uri(plots.as_png(_spread(detector, judged.scores))),
        worst=judged.worst.to_dict("records"),
        pictures=pictures,
    )
    write_text(path, page)


def _spread(detector: ScoreOutlierDetector, scores: Array) -> Figure:
    """Histograms of the scores of the fitted and of the judged rows, and the threshold."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = figure.add_subplot()
    both = np.concatenate([detector.fitted_scores_, scores])
    low, high = np.quantile(both, [0.005, 1.0])
    edges = np.linspace(low, high + 1e-9, 50)
    kept = {"fitted rows": detector.fitted_scores_, "judged rows": scores}
    for (label, values), colour in zip(kept.items(), (plots.GREY, plots.BLUE), strict=True):
        axes.hist(np.clip(values, low, high), edges.tolist(), density=True, alpha=0.6, color=colour, label=label)
    axes.axvline(detector.offset_, color=plots.ORANGE, label="threshold")
    axes.set(xlabel="score (mean log density, nats): the lower, the more surprising", ylabel="share")
    axes.legend(frameon=False, fontsize=8)
    plots.open_frame(axes)
    return figure


def _conditionals(detector: ScoreOutlierDetector, row: pd.DataFrame, verdict: pd.Series) -> Figure:
    """What was to be expected of the columns to top_contributions, given the rest of the row, and what was seen."""
    names = [str(name) for name in row.columns]
    blamed = [verdict[f"column_{place}"] for place in range(1, _NAMED + 1) if f"column_{place}" in verdict]
    seen = row.notna().iloc[0].to_numpy()
    places = [place for place in map(names.index, blamed) if place in detector.columns_.modelled and seen[place]]
    blamed = [names[place] for place in places]
    figure = Figure(figsize=(3.4 * max(1, len(blamed)), 2.3), layout="constrained")
    for place, name in enumerate(blamed):
        axes = figure.add_subplot(1, len(blamed), place + 1)
        _density(axes, detector, row, names.index(name))
        axes.set_title(plots.plain(name), fontsize=9)
    return figure


def _density(axes: Axes, detector: ScoreOutlierDetector, row: pd.DataFrame, column: int) -> None:
    assert detector.ensemble_ is not None
    kind, place = detector.columns_.kinds[column], detector.columns_.modelled.index(column)
    numbers, _ = detector._numbers(row)
    low, high = (float(detector.ensemble_.expected(numbers, u)[0, place]) for u in (0.002, 0.998))
    seen = float(numbers[0, place])
    grid = _grid(kind, low, high, seen)
    log_density = detector.ensemble_.conditional(numbers[0], place, torch.from_numpy(grid)).numpy()
    if kind.discrete:
        labels = [_label(kind, value) for value in grid]
        axes.bar(np.arange(len(grid)), np.exp(log_density), color=plots.BLUE)
        shown = range(0, len(grid), max(1, len(grid) // 6))
        axes.set_xticks(list(shown), [labels[index] for index in shown], fontsize=7)
        if np.isfinite(seen):
            axes.axvline(float(np.argmin(np.abs(grid - seen))), color=plots.ORANGE, label="seen")
    else:
        values = np.asarray(kind.decode(grid), dtype=float)
        axes.fill_between(values, np.exp(log_density + kind.log_slope(grid)), color=plots.BLUE, alpha=0.6)
        if np.isfinite(seen):
            axes.axvline(float(kind.decode(np.array([seen]))[0]), color=plots.ORANGE, label="seen")
        axes.tick_params(labelsize=7)
    axes.set_yticks([])
    axes.legend(frameon=False, fontsize=7)
    plots.open_frame(axes)


def _label(kind: Column, number: float) -> str:
    if isinstance(kind, Categories):
        return plots.plain(kind.names[int(number)]) if number < len(kind.names) else "another"
    assert isinstance(kind, Grid)
    return f"{kind.places(np.array([number]))[0]:g}"


def _grid(kind: Column, low: float, high: float, seen: float) -> Array:
    """Numbers from the lowest to the highest of what was to be expected and what was seen."""
    if np.isfinite(seen):
        low, high = min(low, seen), max(high, seen)
    if not kind.discrete:
        margin = 0.1 * (high - low)
        return np.linspace(low - margin, high + margin, _GRID)
    first, last = np.rint(low), np.rint(high)
    if isinstance(kind, Categories):
        first, last = max(first, 0.0), min(last, float(len(kind.names)))
    return np.arange(first, min(last, first + 10 * _GRID) + 1.0)
