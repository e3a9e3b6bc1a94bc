"""The page of ``arcsm detect``: the distribution of scores, the most surprising rows and what was expected of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from arcsm._runtime.files import write_text
from arcsm.estimators.column_types import Array, Categories, Column, Grid
from arcsm.estimators.detection import TOP_COLUMNS, DetectionResult
from arcsm.estimators.outliers import ScoreOutlierDetector
from arcsm.estimators.times import Times, counted, value_text
from arcsm.reports import plots
from arcsm.reports.run import render
from arcsm.reports.time_axes import label_times

_MAX_PICTURES = 8  # outliers whose conditional densities are drawn
_GRID_POINTS = 160
_MAX_LEVELS = 1_600
_MAX_TICKS, _MAX_TIME_TICKS = 6, 3


def write_detection_report(detector: ScoreOutlierDetector, result: DetectionResult, path: Path, title: str) -> None:
    """Write the page of the outliers that a fitted detector found in a table."""
    pictures = []
    for place in np.flatnonzero(result.lowest["outlier"])[:_MAX_PICTURES]:
        line = result.lowest.iloc[place]
        caption = f"Row {line['row']}: score {line['score']:.2f}, p = {line['p_value']:.2g}"
        pictures.append((caption, plots.embedded(_conditionals(detector, result.rows.iloc[[place]], line))))
    page = render(
        "detect.html",
        title=title,
        rows=len(result.scores),
        outliers=result.outliers,
        fitted=len(detector.fitted_scores_),
        columns=detector.columns_.describe(),
        histogram=plots.embedded(_score_histogram(detector, result.scores)),
        lowest=result.lowest.to_dict("records"),
        pictures=pictures,
    )
    write_text(path, page)


def _score_histogram(detector: ScoreOutlierDetector, scores: Array) -> Figure:
    figure, [axes] = plots.open_panels(7.2, 3.0)
    low, high = np.quantile(np.concatenate([detector.fitted_scores_, scores]), [0.005, 1.0])
    edges = np.linspace(low, high + 1e-9, 50).tolist()
    parts = {"fitted rows": (detector.fitted_scores_, plots.GREY), "scored rows": (scores, plots.BLUE)}
    for label, (values, colour) in parts.items():
        axes.hist(np.clip(values, low, high), edges, density=True, alpha=0.6, color=colour, label=label)
    axes.axvline(detector.offset_, color=plots.ORANGE, label="threshold")
    axes.set(xlabel="score (mean log density, nats); lower is more surprising", ylabel="density")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _conditionals(detector: ScoreOutlierDetector, row: pd.DataFrame, line: pd.Series) -> Figure:
    names, known = [str(name) for name in row.columns], row.notna().iloc[0].to_numpy()
    top = [names.index(line[f"column_{rank}"]) for rank in range(1, TOP_COLUMNS + 1) if f"column_{rank}" in line]
    top = [d for d in top if d in detector.columns_.modelled and known[d]]
    figure, panels = plots.column_panels([plots.plain(names[d]) for d in top], 3.4, 2.3)
    for axes, d in zip(panels, top, strict=True):
        _draw_conditional(axes, detector, row, d)
    return figure


def _draw_conditional(axes: Axes, detector: ScoreOutlierDetector, row: pd.DataFrame, d: int) -> None:
    assert detector.ensemble_ is not None
    kind, place = detector.columns_.kinds[d], detector.columns_.modelled.index(d)
    numbers, _ = detector.encode_rows(row)  # (1, M)
    low, high = (float(detector.ensemble_.quantiles(numbers, u)[0, place]) for u in (0.002, 0.998))
    observed = float(numbers[0, place])
    grid = _grid(kind, low, high, observed)
    log_density = detector.ensemble_.log_density(numbers[0], place, torch.from_numpy(grid)).numpy()
    if kind.discrete:
        axes.bar(np.arange(len(grid)), np.exp(log_density), color=plots.BLUE)
        most = _MAX_TIME_TICKS if isinstance(kind, Times) else _MAX_TICKS
        ticks = range(0, len(grid), max(1, len(grid) // most))
        axes.set_xticks(list(ticks), [_level_label(kind, grid[tick]) for tick in ticks], fontsize=7)
        axes.axvline(float(np.argmin(np.abs(grid - observed))), color=plots.ORANGE, label="observed")
    else:
        values = np.asarray(counted(kind).decode(grid), dtype=float)
        axes.fill_between(values, np.exp(log_density + kind.log_slope(grid)), color=plots.BLUE, alpha=0.6)
        axes.axvline(float(counted(kind).decode(np.array([observed]))[0]), color=plots.ORANGE, label="observed")
        axes.tick_params(labelsize=7)
        label_times(axes, kind)
    axes.set_yticks([])
    axes.legend(frameon=False, fontsize=7)


def _level_label(kind: Column, number: float) -> str:
    if isinstance(kind, Categories):
        return plots.plain(kind.names[int(number)]) if number < len(kind.names) else "other"
    grid = counted(kind)
    assert isinstance(grid, Grid)
    [value] = grid.values_at(np.array([number]))
    return value_text(kind.scale.times(np.array([float(value)]))[0]) if isinstance(kind, Times) else f"{value:g}"


def _grid(kind: Column, low: float, high: float, observed: float) -> Array:
    """Return numbers that cover the expected interval and the observed value."""
    low, high = min(low, observed), max(high, observed)
    if not kind.discrete:
        margin = 0.1 * (high - low)
        return np.linspace(low - margin, high + margin, _GRID_POINTS)
    first, last = np.rint(low), np.rint(high)
    if isinstance(kind, Categories):
        first, last = max(first, 0.0), min(last, float(len(kind.names)))
    return np.arange(first, min(last, first + _MAX_LEVELS) + 1.0)
