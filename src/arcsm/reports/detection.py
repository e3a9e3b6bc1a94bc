"""The page of ``arcsm detect``: the distribution of scores, the most surprising rows and what was expected of them."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from arcsm._runtime.files import write_text
from arcsm._runtime.progress import track
from arcsm.estimators.column_types import Array
from arcsm.estimators.detection import TOP_COLUMNS, DetectionResult
from arcsm.estimators.outliers import ScoreOutlierDetector
from arcsm.reports import plots
from arcsm.reports.conditionals import conditional_panels
from arcsm.reports.run import render

_MAX_PICTURES = 8  # outliers whose conditional densities are drawn


def write_detection_report(
    detector: ScoreOutlierDetector, result: DetectionResult, path: Path, title: str, progress: bool = False
) -> None:
    """Write the page of the outliers that a fitted detector found in a table."""
    places = np.flatnonzero(result.lowest["outlier"])[:_MAX_PICTURES]
    pictures = []
    with track("drawing the report", len(places) + 1, progress) as work:
        for place in work.over(places):
            line = result.lowest.iloc[place]
            title_of_row = f"Row {line['row']}: score {line['score']:.2f}, p = {line['p_value']:.2g}"
            row = result.rows.iloc[[place]]
            pictures.append((title_of_row, conditional_panels(detector, row, _surprising_columns(row, line))))
        histogram = plots.embedded(score_histogram(detector.fitted_scores_, result.scores, result.threshold))
        work()
    page = render(
        "detect.html",
        title=title,
        rows=len(result.scores),
        outliers=result.outliers,
        fitted=detector.n_fitted_rows_,
        columns=detector.columns_.describe(),
        histogram=histogram,
        lowest=result.lowest.to_dict("records"),
        pictures=pictures,
    )
    write_text(path, page)


def _surprising_columns(row: pd.DataFrame, line: pd.Series) -> list[int]:
    """Return the indices of a row's most surprising columns, as far as the row has a value there."""
    names, known = [str(name) for name in row.columns], row.notna().iloc[0].to_numpy()
    top = [names.index(line[f"column_{rank}"]) for rank in range(1, TOP_COLUMNS + 1) if f"column_{rank}" in line]
    return [d for d in top if known[d]]


def score_histogram(fitted: Array, scored: Array, threshold: float) -> Figure:
    """Plot histograms of the scores of fitted and of scored rows; an arrow stands for scores far below the others."""
    figure, [axes] = plots.open_panels(7.2, 3.0)
    scores = np.concatenate([fitted, scored])
    low, high = np.quantile(scores, [0.005, 1.0])
    near = plots.within_reach(scores, low, high)
    low = float(scores[near].min())
    edges = np.linspace(low, high + 1e-9, 50).tolist()
    for label, values, colour in (("fitted rows", fitted, plots.GREY), ("scored rows", scored, plots.BLUE)):
        weights = np.full(len(values), 1.0 / len(values))
        axes.hist(values, edges, weights=weights, alpha=0.6, color=colour, label=label)
    axes.axvline(threshold, color=plots.ORANGE, label="threshold")
    axes.set_xlim(edges[0], edges[-1])
    if not near.all():
        plots.mark_value(axes, float(scores.min()), f"{(~near).sum()} rows, down to {scores.min():.4g}")
    axes.set(xlabel="score (mean log density, nats); lower is more surprising", ylabel="share of rows")
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3)
    return figure
