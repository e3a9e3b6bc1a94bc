"""Pictures of the distribution of each column given the other known values of a row, and of the row's own value."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from arcsm.estimators.column_types import Array, Categories, Column, Constant, Grid
from arcsm.estimators.density_estimator import DensityEstimator
from arcsm.estimators.times import Times, counted, value_text
from arcsm.reports import plots
from arcsm.reports.figure_text import drawable_text
from arcsm.reports.time_axes import label_times

_POINTS = 160  # of a density or of levels
_MAX_BARS = 60  # beyond which gaps between them would be too narrow to see
_MAX_TICKS = 6
_MAX_CATEGORIES = 8  # with a bar
_DIGITS = 6  # of the row's value
_TAIL = 0.002  # probability to either side of an expected interval


@dataclass(frozen=True)
class Conditional:
    """The distribution of a column's numbers given other values of a row."""

    low: float  # ends of an interval with nearly all of the probability
    high: float
    density: Callable[[Array], Array]  # of numbers


def conditional_panels(estimator: DensityEstimator, row: pd.DataFrame, columns: Sequence[int]) -> list[plots.Panel]:
    """Return a picture for each of some columns: its distribution given others of the row, and the row's value.

    The row may have missing values.
    """
    numbers, _ = estimator.encode_rows(row)  # (1, M)
    model, modelled = estimator.model_, estimator.columns_.modelled
    if model is not None:
        places = torch.tensor([modelled.index(d) for d in columns if d in modelled], dtype=torch.long)
        tails = torch.tensor([_TAIL, 1.0 - _TAIL], dtype=numbers.dtype)
        found = model.conditional_quantiles(numbers.expand(len(places), -1), places, tails).tolist()
        ends = dict(zip(places.tolist(), found, strict=True))
    panels = []
    for d in columns:
        kind = estimator.columns_.kinds[d]
        value: Any = row.iloc[0, d]
        value = None if pd.isna(value) else value
        caption = str(row.columns[d]) if value is None else f"{row.columns[d]}: {value_text(value, _DIGITS)}"
        if isinstance(kind, Constant) or model is None:
            panels.append(plots.Panel(caption, None, "All fitted rows have the same value."))
            continue
        place = modelled.index(d)

        def density(grid: Array, place: int = place) -> Array:
            column, values = torch.tensor([place]), torch.from_numpy(grid)[None]
            return model.conditional_log_density(numbers, column, values)[0].exp().numpy()

        low, high = ends[place]
        panels.append(_panel(caption, kind, value, Conditional(low, high, density)))
    return panels


def _panel(caption: str, kind: Column, value: Any, conditional: Conditional) -> plots.Panel:
    figure, axes = plots.open_panel()
    if isinstance(kind, Categories):
        note = draw_categories(axes, kind, value, conditional)
        return plots.Panel(caption, plots.embedded(figure), note)
    numbers = counted(kind)
    number = None if value is None else _number(kind, value)
    if isinstance(numbers, Grid):
        draw_levels(axes, numbers, number, conditional)
    else:
        draw_density(axes, numbers, number, conditional)
    is_whole = isinstance(value, int | np.integer) or (value is None and isinstance(numbers, Grid) and numbers.whole)
    if is_whole or not isinstance(axes.xaxis.get_major_locator(), FixedLocator):
        plots.thin_ticks(axes, is_whole)
    label_times(axes, kind)
    if number is not None:
        plots.mark_value(axes, number, value_text(value, _DIGITS))
    return plots.Panel(caption, plots.embedded(figure))


def _number(kind: Column, value: Any) -> float:
    return float(kind.scale.count([value])[0]) if isinstance(kind, Times) else float(value)


def draw_density(axes: Axes, kind: Column, value: float | None, conditional: Conditional) -> None:
    """Draw the density of a continuous column; the axis shows the value, if there is one in reach."""
    ends = kind.decode(np.array([conditional.low, conditional.high])).astype(float)
    if value is not None and plots.within_reach(value, *ends):
        ends = np.array([min(ends[0], value), max(ends[1], value)])
    low, high = kind.encode(ends)
    margin = 0.05 * (high - low)
    grid = np.linspace(low - margin, high + margin, _POINTS)
    values = kind.decode(grid).astype(float)
    axes.fill_between(values, conditional.density(grid) * np.exp(kind.log_slope(grid)), color=plots.BLUE, alpha=0.6)
    axes.set_xlim(values[0], values[-1])


def draw_levels(axes: Axes, kind: Grid, value: float | None, conditional: Conditional) -> None:
    """Draw the probabilities of a discrete column's fitted levels, each at its value; many bars touch."""
    first, last = np.clip(np.rint([conditional.low, conditional.high]), *kind.limits).astype(int).tolist()
    stride = math.ceil((last - first + 1) / _POINTS)
    numbers = np.arange(first, last + 1, stride, dtype=float)
    values, width = kind.values_at(numbers).astype(float), stride * kind.spacing
    if len(values) > _MAX_BARS:
        axes.fill_between(values, conditional.density(numbers), step="mid", color=plots.BLUE, linewidth=0)
    else:
        axes.bar(values, conditional.density(numbers), 0.8 * width, color=plots.BLUE)
    low, high = values[0] - width, values[-1] + width
    if value is not None and plots.within_reach(value, low, high):
        low, high = min(low, value - width), max(high, value + width)
    axes.set_xlim(low, high)
    if len(values) <= _MAX_TICKS:
        axes.set_xticks(values)


def draw_categories(axes: Axes, kind: Categories, value: Any, conditional: Conditional) -> str:
    """Draw the probabilities of the likeliest categories and of the row's own, if any; return a remark on the others.

    Categories that no fitted row has share one number, the next after the others.
    """
    observed = None if value is None else int(kind.encode(np.array([value], dtype=object))[0])
    candidates = len(kind.names) if kind.ordered else min(len(kind.names), _POINTS)  # else the most frequent ones
    numbers = np.arange(candidates, dtype=float)
    if observed is not None:
        numbers = np.unique(np.append(numbers, observed))
    probabilities = conditional.density(numbers)
    shown = np.sort(np.argsort(-probabilities)[:_MAX_CATEGORIES])
    if observed is not None and observed not in numbers[shown]:
        shown = np.append(shown, np.flatnonzero(numbers == observed))
    colours = [plots.ORANGE if number == observed else plots.BLUE for number in numbers[shown]]
    axes.bar(np.arange(len(shown)), probabilities[shown], color=colours)
    names = [kind.names[int(number)] if number < len(kind.names) else value for number in numbers[shown]]
    texts, style = drawable_text(names, 10 if len(names) > 4 else plots.LABEL_CHARACTERS // len(names) - 4)
    axes.set_xticks(np.arange(len(shown)), texts, rotation=30 if len(names) > 4 else 0, **style)
    others = len(kind.names) - int((numbers[shown] < len(kind.names)).sum())
    notes = ["No fitted row has this value."] if observed == len(kind.names) else []
    return " ".join([*notes, *([f"{others} less likely values are not shown."] if others else [])])
