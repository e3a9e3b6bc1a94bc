"""The page of ``arcsm synthesize``: columns, correlations and rows of a table beside synthetic ones."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from arcsm._runtime.files import write_text
from arcsm.estimators.column_types import Array, Categories, Column, Constant, Grid
from arcsm.estimators.density import ScoreDensity
from arcsm.estimators.encoder import Columns
from arcsm.estimators.times import Times, counted, value_text
from arcsm.reports import plots
from arcsm.reports.run import render
from arcsm.reports.time_axes import label_times

_LABELS = ("table", "synthetic")
_MAX_BARS = 24  # of a discrete column
_MAX_COLUMNS = 24  # with a panel, or with a name beside the correlations
_ROWS_ON_PAGE = 10


def write_synthesis_report(
    density: ScoreDensity, table: pd.DataFrame, synthetic: pd.DataFrame, summary: list[str], path: Path, title: str
) -> None:
    """Write the page of synthetic rows drawn from a density fitted to a table, with sentences about their quality."""
    columns = density.columns_
    note = f" (the first {_MAX_COLUMNS} of {len(table.columns)})" if len(table.columns) > _MAX_COLUMNS else ""
    pictures = [(f"Columns{note}", plots.embedded(_marginals(columns, table, synthetic)))]
    if len(columns.modelled) > 1:
        pictures.append(("Rank correlations", plots.embedded(_correlations(columns, table, synthetic))))
    rows = synthetic.head(_ROWS_ON_PAGE).astype(object).itertuples(index=False, name=None)
    page = render(
        "synthesis.html",
        title=title,
        fitted=len(table),
        rows=len(synthetic),
        columns=columns.describe(),
        summary=summary,
        pictures=pictures,
        names=[str(name) for name in synthetic.columns],
        cells=[[f"{cell:.8g}" if isinstance(cell, float) else value_text(cell) for cell in row] for row in rows],
    )
    write_text(path, page)


def _marginals(columns: Columns, table: pd.DataFrame, synthetic: pd.DataFrame) -> Figure:
    kinds = columns.kinds[:_MAX_COLUMNS]
    titles = [plots.plain(name) + _omitted_categories(kind) for name, kind in zip(table.columns, kinds, strict=False)]
    figure, panels = plots.column_panels(titles, 2.6, 2.0)
    real, drawn = columns.encode(table), columns.encode(synthetic)
    for d, (kind, axes) in enumerate(zip(kinds, panels, strict=True)):
        _draw_marginal(axes, kind, *(rows[~np.isnan(rows[:, d]), d] for rows in (real, drawn)))
        axes.set_yticks([])
    for axes in panels:
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=7)
            break
    return figure


def _draw_marginal(axes: Axes, kind: Column, real: Array, synthetic: Array) -> None:
    base = counted(kind)
    levels = len(kind.names) if isinstance(kind, Categories) else base.levels if isinstance(base, Grid) else 0
    if isinstance(kind, Constant):
        axes.set_xticks([])
        axes.text(0.5, 0.5, f"always {plots.plain(kind.value)[:24]}", ha="center", transform=axes.transAxes, fontsize=8)
    elif isinstance(kind, Categories) or 0 < levels <= _MAX_BARS:
        places = np.arange(min(levels, _MAX_BARS))
        colours = (plots.GREY, plots.BLUE)
        for shift, numbers, colour, label in zip((-0.2, 0.2), (real, synthetic), colours, _LABELS, strict=True):
            shares = [float((np.rint(numbers) == place).mean()) for place in places]
            axes.bar(places + shift, shares, 0.4, color=colour, label=label)
        ticks = places[:: max(1, len(places) // 4)]
        as_text = value_text if isinstance(kind, Times) else str
        axes.set_xticks(ticks, [plots.plain(as_text(value))[:12] for value in kind.decode(ticks.astype(float))])
    else:
        values, drawn = (base.decode(numbers).astype(float) for numbers in (real, synthetic))
        edges = _edges(base, *np.quantile(values, [0.002, 0.998]))
        values, drawn = (np.clip(each, edges[0], edges[-1]) for each in (values, drawn))  # tails go to the last bars
        plots.compare_histograms(axes, values, drawn, edges, _LABELS)
        label_times(axes, kind)


def _omitted_categories(kind: Column) -> str:
    omitted = len(kind.names) - _MAX_BARS if isinstance(kind, Categories) else 0
    return f" (and {omitted} more categories)" if omitted > 0 else ""


def _edges(kind: Column, low: float, high: float) -> list[float]:
    """Return the edges of about 30 bins; on a grid, all bins hold equally many levels."""
    if isinstance(kind, Grid):
        width = kind.spacing * max(1.0, np.ceil((high - low) / kind.spacing / 30.0))
        return np.arange(low - 0.5 * kind.spacing, high + width, width).tolist()
    return plots.even_edges(low, high)


def _correlations(columns: Columns, table: pd.DataFrame, synthetic: pd.DataFrame) -> Figure:
    """Plot Spearman's correlations of all columns, with categories ordered by frequency."""
    figure = Figure(figsize=(8.0, 3.9), layout="constrained")
    names = [plots.plain(table.columns[d])[:14] for d in columns.modelled]
    panels = figure.subplots(1, 2)
    for axes, title, rows in zip(panels, _LABELS, (table, synthetic), strict=True):
        numbers = pd.DataFrame(columns.encode(rows)[:, columns.modelled])
        image = axes.imshow(numbers.corr("spearman").to_numpy(), vmin=-1.0, vmax=1.0, cmap="RdBu_r")
        axes.set_title(title, fontsize=9)
        axes.set(xticks=[], yticks=[])
        if len(names) <= _MAX_COLUMNS:
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
            axes.set_yticks(range(len(names)), names, fontsize=6)
    figure.colorbar(image, ax=panels, shrink=0.8)
    return figure
