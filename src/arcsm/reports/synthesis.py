"""The page of ``arcsm synthesize``: columns, correlations and rows of a table beside synthetic ones."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from arcsm._runtime.files import write_text
from arcsm._runtime.progress import track
from arcsm.estimators.column_types import Array, Categories, Column, Constant, Grid
from arcsm.estimators.density import ScoreDensity
from arcsm.estimators.encoder import Columns
from arcsm.estimators.times import counted, value_text
from arcsm.reports import plots
from arcsm.reports.figure_text import drawable_text
from arcsm.reports.run import render
from arcsm.reports.time_axes import label_times

_MAX_BARS = 24  # of a discrete column
_MAX_COLUMNS = 24  # with a panel, or with a name beside the correlations
_MAX_TICKS = 5
_ROWS_ON_PAGE = 10


def write_synthesis_report(
    density: ScoreDensity,
    table: pd.DataFrame,
    synthetic: pd.DataFrame,
    summary: list[str],
    path: Path,
    title: str,
    progress: bool = False,
) -> None:
    """Write the page of synthetic rows drawn from a density fitted to a table, with sentences about their quality."""
    columns = density.columns_
    kinds = columns.kinds[:_MAX_COLUMNS]
    encoded = columns.encode(table), columns.encode(synthetic)
    with track("drawing the report", len(kinds) + 1, progress) as work:
        panels = [marginal_panel(columns, d, *encoded) for d in work.over(range(len(kinds)))]
        correlations = plots.embedded(_correlations(columns, *encoded)) if len(columns.modelled) > 1 else None
        work()
    rows = synthetic.head(_ROWS_ON_PAGE).astype(object).itertuples(index=False, name=None)
    page = render(
        "synthesis.html",
        title=title,
        fitted=len(table),
        rows=len(synthetic),
        columns=columns.describe(),
        summary=summary,
        note=f" (the first {len(kinds)} of {len(columns.kinds)})" if len(columns.kinds) > len(kinds) else "",
        panels=panels,
        correlations=correlations,
        names=[str(name) for name in synthetic.columns],
        cells=[[value_text(cell, digits=6) for cell in row] for row in rows],
    )
    write_text(path, page)


def marginal_panel(columns: Columns, d: int, table: Array, synthetic: Array) -> plots.Panel:
    """Return a picture of a column's values in a table and among synthetic rows, both encoded ``(N, D)``."""
    kind, name = columns.kinds[d], str(columns.labels[d])
    if isinstance(kind, Constant):
        return plots.Panel(name, None, f"always {kind.value}")
    figure, axes = plots.open_panel()
    note = _draw_marginal(axes, kind, *(rows[~np.isnan(rows[:, d]), d] for rows in (table, synthetic)))
    return plots.Panel(name, plots.embedded(figure), note)


def _draw_marginal(axes: Axes, kind: Column, real: Array, synthetic: Array) -> str:
    """Draw the values of a column; return a remark on those that are not drawn."""
    numbers = counted(kind)
    levels = len(kind.names) if isinstance(kind, Categories) else numbers.levels if isinstance(numbers, Grid) else 0
    if isinstance(kind, Categories) or 0 < levels <= _MAX_BARS:
        counts = np.array([(np.rint(real) == level).sum() for level in range(levels)])
        shown = np.sort(np.argsort(-counts, kind="stable")[:_MAX_BARS])
        places = np.arange(len(shown))
        for shift, rows, colour in zip((-0.2, 0.2), (real, synthetic), (plots.GREY, plots.BLUE), strict=True):
            shares = [float((np.rint(rows) == level).mean()) for level in shown]
            axes.bar(places + shift, shares, 0.4, color=colour)
        ticks = places[:: -(-len(places) // _MAX_TICKS)]
        labels = [value_text(value, 5) for value in kind.decode(shown[ticks].astype(float))]
        texts, style = drawable_text(labels, plots.LABEL_CHARACTERS // len(ticks) - 2)
        axes.set_xticks(ticks, texts, **style)
        return f"and {levels - _MAX_BARS} rarer categories" if levels > _MAX_BARS else ""
    values, drawn = (numbers.decode(rows).astype(float) for rows in (real, synthetic))
    note = plots.compare_histograms(axes, values, drawn, _edges(numbers, *np.quantile(values, [0.002, 0.998])))
    plots.thin_ticks(axes)
    label_times(axes, kind)
    return note


def _edges(kind: Column, low: float, high: float) -> list[float]:
    """Return the edges of about 30 bins; on a grid, all bins hold equally many levels."""
    if isinstance(kind, Grid):
        width = kind.spacing * max(1.0, np.ceil((high - low) / kind.spacing / 30.0))
        return np.arange(low - 0.5 * kind.spacing, high + width, width).tolist()
    return plots.even_edges(low, high)


def _correlations(columns: Columns, table: Array, synthetic: Array) -> Figure:
    """Plot Spearman's correlations of all columns, with categories in their order, or by frequency."""
    figure = Figure(figsize=(8.0, 3.9), layout="constrained")
    names, style = drawable_text([columns.labels[d] for d in columns.modelled], 14)
    panels = figure.subplots(1, 2)
    for axes, title, rows in zip(panels, ("table", "synthetic"), (table, synthetic), strict=True):
        numbers = pd.DataFrame(rows[:, columns.modelled])
        image = axes.imshow(numbers.corr("spearman").to_numpy(), vmin=-1.0, vmax=1.0, cmap="RdBu_r")
        axes.set_title(title, fontsize=9)
        axes.set(xticks=[], yticks=[])
        if len(names) <= _MAX_COLUMNS:
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6, **style)
            axes.set_yticks(range(len(names)), names, fontsize=6, **style)
    figure.colorbar(image, ax=panels, shrink=0.8)
    return figure
