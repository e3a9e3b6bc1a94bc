"""Synthetic rows as a table has them, and how like it they are: whether they are told from it, and whether copied."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from arcsm._runtime.files import write_text
from arcsm.estimators.base import Array
from arcsm.estimators.column_types import Categories, Column, Constant, Continuous, Grid
from arcsm.estimators.density import ScoreDensity
from arcsm.estimators.encoder import Columns, describe
from arcsm.reports import plots
from arcsm.reports.run import render

_LEAST = 50  # held-out rows, and half of the synthetic ones, below which nothing is said
_COMPARED = 5_000  # rows of each kind that trees see, at most
_SEARCHED, _SEARCHING = 100_000, 2_000  # rows of the table and synthetic ones that are compared one by one, at most
_DECIMALS = 8  # of a column's values, beyond which they are not rounded
_LOOKED_AT = 10_000  # different values of a column whose decimals are counted
_LEVELS = 24  # bars of a discrete column, and names that are told apart
_SHOWN = 24  # columns that are drawn
_ROWS_ON_PAGE = 10


@dataclass(frozen=True)
class Nearest:
    """Which rows of a table are nearest to synthetic ones.

    Attributes:
        fitted: Share of synthetic rows whose nearest row of the table is a fitted one.
        expected: What that share is, on average, if fitted rows are nothing special among those of the table; clearly
            more than that says that they were learned by heart.
        error: Standard deviation of the share, then.
    """

    fitted: float
    expected: float
    error: float


@dataclass(frozen=True)
class SynthesisQuality:
    """How like a table synthetic rows are.

    Attributes:
        held_out: Rows of the table that the models did not learn from.
        synthetic: Rows that were drawn.
        gaps: Whether the table has some. Synthetic rows then get those of other rows, at random, before trees see them.
        auc: Area under the ROC curve of gradient-boosted trees that tell held-out rows from synthetic ones, after they
            were shown the fitted rows and other synthetic ones; 0.5 where they cannot tell. ``None`` for too few rows.
        auc_error: Its standard error, over the rows.
        copies: Share of synthetic rows that are equal to a fitted one without gaps; ``None`` where all have gaps.
        held_out_copies: Share of held-out rows without gaps that are; ``None`` for too few rows.
        nearest: Whether fitted rows are nearer than held-out ones; ``None`` for too few rows.
    """

    held_out: int
    synthetic: int
    gaps: bool
    auc: float | None
    auc_error: float | None
    copies: float | None
    held_out_copies: float | None
    nearest: Nearest | None

    @classmethod
    def of(cls, density: ScoreDensity, table: pd.DataFrame, synthetic: pd.DataFrame, seed: int = 0) -> Self:
        """Compare synthetic rows with those that a density was fitted to.

        Arguments:
            density: Fitted to ``table``.
            table: Its rows.
            synthetic: Rows that it drew.
            seed: Of what is random in the comparison.
        """
        columns, random = density.columns_, np.random.default_rng(seed)
        rows, ours = _numbers(columns, table), _numbers(columns, synthetic)
        held = np.zeros(len(rows), dtype=bool)
        held[density.held_out_rows_] = True
        counts = int(held.sum()), len(ours), bool(np.isnan(rows).any())
        fitted = rows if held.all() else rows[~held]  # of a handful of rows, those held out were fitted, too
        copies = _copies(ours, fitted)
        if held.all() or counts[0] < _LEAST or counts[1] < 2 * _LEAST or not columns.modelled:
            return cls(*counts, None, None, copies, None, None)
        seen, others, drawn = (_some(kind, _COMPARED, random) for kind in (fitted, rows[held], ours))
        auc, error = _told_apart(seen, others, drawn, seed, random)
        nearest = _nearest(columns, rows, held, _some(ours, _SEARCHING, random), random)
        return cls(*counts, auc, error, copies, _copies(rows[held], fitted), nearest)

    def lines(self) -> list[str]:
        """What is said of it, for people."""
        copies = "not known, there is none" if self.copies is None else f"{self.copies:.1%}"
        whole = " without gaps" if self.gaps else ""
        if self.auc is None or self.nearest is None:
            return [
                f"how like the table they are is said of {_LEAST} held-out rows or more ({self.held_out} here), "
                f"{2 * _LEAST} synthetic ones ({self.synthetic}) and columns that vary",
                f"copies of fitted rows{whole}: {copies}",
            ]
        base = "" if self.held_out_copies is None else f" (of held-out rows {self.held_out_copies:.1%} are)"
        gaps = "; gaps of the table that go with its values tell them apart, too" if self.gaps else ""
        return [
            f"told from {self.held_out} held-out rows by trees: AUC {self.auc:.3f} +- {self.auc_error:.3f} "
            f"(0.5 or less: not at all, 1: always{gaps})",
            f"copies of fitted rows{whole}: {copies}{base}",
            f"nearest to a fitted row: {self.nearest.fitted:.1%}, expected {self.nearest.expected:.1%} +- "
            f"{self.nearest.error:.1%} (clearly more: learned by heart)",
        ]


def _numbers(columns: Columns, table: pd.DataFrame) -> Array:
    """Numbers of all columns, those of discrete ones whole."""
    discrete = np.array([kind.discrete for kind in columns.kinds])
    numbers = columns.encode(table)
    return np.where(discrete, np.rint(numbers), numbers) + 0.0  # one zero


def _some(rows: Array, most: int, random: np.random.Generator) -> Array:
    return rows[random.permutation(len(rows))[:most]]


def _copies(rows: Array, of: Array) -> float | None:
    """Share of rows without gaps that are equal to one of others; ``None`` where there are none of either."""
    rows, of = (some[~np.isnan(some).any(1)] for some in (rows, of))
    known = {row.tobytes() for row in of}
    return float(np.mean([row.tobytes() in known for row in rows])) if len(rows) and len(of) else None


def _told_apart(
    fitted: Array, held_out: Array, synthetic: Array, seed: int, random: np.random.Generator
) -> tuple[float, float]:
    """How well trees tell synthetic rows from held-out ones: area under the curve, and its standard error."""
    count = min(len(held_out), len(synthetic) // 2)
    seen, judged = synthetic[count:], np.concatenate([held_out[:count], _with_gaps(synthetic[:count], held_out)])
    rows = np.concatenate([fitted, _with_gaps(seen, fitted[random.integers(len(fitted), size=len(seen))])])
    known = ~np.isnan(rows).all(0)
    trees = HistGradientBoostingClassifier(random_state=seed)
    trees.fit(rows[:, known], np.repeat([0, 1], [len(fitted), len(seen)]))
    auc = float(roc_auc_score(np.repeat([0, 1], count), trees.predict_proba(judged[:, known])[:, 1]))
    return auc, _auc_error(auc, count)


def _with_gaps(rows: Array, of: Array) -> Array:
    """Rows with the gaps of others."""
    return np.where(np.isnan(of[: len(rows)]), np.nan, rows)


def _auc_error(auc: float, count: int) -> float:
    """Standard error of an area under the curve of ``count`` rows of either kind.

    References:
        The meaning and use of the area under a receiver operating characteristic curve (Hanley and McNeil, 1982)
    """
    one, other = auc / (2.0 - auc), 2.0 * auc**2 / (1.0 + auc)
    pairs = auc * (1.0 - auc) + (count - 1) * (one - auc**2 + other - auc**2)
    return math.sqrt(max(pairs, 0.0)) / count


def _nearest(
    columns: Columns, rows: Array, held: NDArray[np.bool_], synthetic: Array, random: np.random.Generator
) -> Nearest:
    """Whether the rows nearest to synthetic ones are fitted ones more often than by chance.

    If fitted rows are nothing special, which rows were held out is a random choice among those of the table: then so
    many of the nearest are fitted on average, and so far from that usually (the variance of a sum over rows that are
    chosen without replacement).
    """
    places = _places(columns, rows)
    others = random.permutation(np.flatnonzero(~held))[: max(_SEARCHED - int(held.sum()), 1)]
    order = random.permutation(np.append(others, np.flatnonzero(held)))  # of rows equally near, one at random is found
    rows, fitted = rows[order], ~held[order]
    found = NearestNeighbors(n_neighbors=1).fit(places(rows)).kneighbors(places(synthetic))[1][:, 0]
    times = np.bincount(found, minlength=len(rows)).astype(float)
    share, count = float(fitted.mean()), len(rows)
    variance = share * (1.0 - share) * count / (count - 1) * float(np.square(times - times.mean()).sum())
    return Nearest(float(times[fitted].sum()) / len(synthetic), share, math.sqrt(variance) / len(synthetic))


def _places(columns: Columns, rows: Array) -> Callable[[Array], Array]:
    """What makes points of rows: numbers in one unit, two names as far apart as any others, gaps in the middle."""
    d = columns.modelled
    middle, scale = np.nanmedian(rows[:, d], 0), np.nanstd(rows[:, d], 0)
    named = np.array([isinstance(columns.kinds[column], Categories) for column in d])

    def places(rows: Array) -> Array:
        filled = np.where(np.isnan(rows[:, d]), middle, rows[:, d])
        numbers = ((filled - middle) / np.where(scale > 0.0, scale, 1.0))[:, ~named]
        names = filled[:, named].astype(int).clip(0, _LEVELS)
        flags = (np.eye(_LEVELS + 1)[column] / math.sqrt(2.0) for column in names.T)
        return np.concatenate([part.astype(np.float32) for part in (numbers, *flags)], 1)

    return places


# As the table has them ----------------------------------------------------------------------------------------------


def as_precise_as(
    table: pd.DataFrame, columns: Columns, rows: pd.DataFrame, given: Collection[str] = (), as_text: bool = False
) -> pd.DataFrame:
    """Synthetic rows whose values have as many decimals as those of the table.

    Arguments:
        table: Rows that were fitted.
        columns: What its columns were taken for.
        rows: Those that were drawn.
        given: Columns that are left as they are.
        as_text: Whether they are to be text: whole numbers then are written as such, whatever their type.
    """
    rows = rows.copy()
    for name, kind in zip(table.columns, columns.kinds, strict=True):
        if not pd.api.types.is_float_dtype(rows[name].dtype) or not isinstance(kind, Continuous | Grid):
            continue
        decimals = 0 if isinstance(kind, Grid) and kind.whole else _decimals(table[name])
        if name not in given:
            found = rows[name] if decimals is None else _rounded(rows[name], decimals)
            if isinstance(kind, Grid) and not kind.whole:
                found = _to_levels(rows[name], table[name], kind.spacing, found)
            rows[name] = found
        if as_text and decimals == 0 and bool(((rows[name] % 1 == 0) & (rows[name].abs() < 2**53)).all()):
            rows[name] = rows[name].astype(np.int64)
    return rows


def _rounded(values: pd.Series, decimals: int) -> pd.Series:
    """Values with so many decimals, in their type; what has no more of them stays as it is."""
    exact = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.where(np.abs(exact) * 10.0**decimals < 2**53, np.round(exact, decimals), exact) + 0.0
    return pd.Series(found, index=values.index).astype(values.dtype)


def _to_levels(values: pd.Series, known: pd.Series, spacing: float, otherwise: pd.Series) -> pd.Series:
    """Values of a grid as those of the table were written; where the table has none at a place, other ones."""
    levels = np.unique(np.asarray(known.dropna()))
    after = np.searchsorted(levels, values).clip(1, len(levels) - 1)
    nearest = np.where(values - levels[after - 1] < levels[after] - values, levels[after - 1], levels[after])
    return otherwise.where(np.abs(nearest - values) > 0.5 * spacing, nearest)


def _decimals(column: pd.Series) -> int | None:
    """The most decimals that a value of a column has; ``None`` where they are too many to have been written so."""
    different = np.asarray(column.dropna().unique())
    some = different[:: max(1, len(different) // _LOOKED_AT)]
    most = max((-int(Decimal(str(value)).normalize().as_tuple().exponent) for value in some), default=0)
    return max(0, most) if most <= _DECIMALS else None


# The page -----------------------------------------------------------------------------------------------------------


def write_synthesis_report(
    density: ScoreDensity, table: pd.DataFrame, synthetic: pd.DataFrame, found: list[str], path: Path, title: str
) -> None:
    """Write the page: columns and their correlations, of the table and of synthetic rows, and some of these.

    Arguments:
        density: Fitted to ``table``.
        table: Its rows.
        synthetic: Rows that it drew.
        found: What is said of them, a paragraph each.
        path: The page.
        title: Its heading.
    """
    some = f" (the first {_SHOWN} of {len(table.columns)})" if len(table.columns) > _SHOWN else ""
    pictures = [(f"Columns{some}", _picture(_marginals(density.columns_, table, synthetic)))]
    if len(density.columns_.modelled) > 1:
        pictures.append(("Rank correlations", _picture(_correlations(density.columns_, table, synthetic))))
    shown = synthetic.head(_ROWS_ON_PAGE)
    page = render(
        "synthesis.html",
        title=title,
        fitted=len(table),
        rows=len(synthetic),
        columns=describe(density.columns_.kinds),
        found=found,
        pictures=pictures,
        names=[str(name) for name in shown.columns],
        cells=[[f"{cell:.8g}" if isinstance(cell, float) else str(cell) for cell in row] for row in _rows(shown)],
    )
    write_text(path, page)


def _rows(frame: pd.DataFrame) -> list[tuple[object, ...]]:
    return list(frame.astype(object).itertuples(index=False, name=None))


def _picture(figure: Figure) -> str:
    return plots.as_data_uri(plots.as_png(figure))


def _marginals(columns: Columns, table: pd.DataFrame, synthetic: pd.DataFrame) -> Figure:
    """What values every column has in the table, and in synthetic rows."""
    shown = min(len(columns.kinds), _SHOWN)
    across = min(4, shown)
    figure = Figure(figsize=(2.6 * across, 2.0 * -(-shown // across)), layout="constrained")
    real, ours = columns.encode(table), columns.encode(synthetic)
    labelled = False
    for d, kind in enumerate(columns.kinds[:shown]):
        axes = figure.add_subplot(-(-shown // across), across, d + 1)
        _both(axes, kind, real[:, d], ours[:, d])
        axes.set_title(plots.plain(table.columns[d]) + _left_out(kind), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.set_yticks([])
        plots.open_frame(axes)
        if not labelled and axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=7)
            labelled = True
    return figure


def _both(axes: Axes, kind: Column, real: Array, synthetic: Array) -> None:
    """One column: bars of a few levels, or else histograms, in units of the table."""
    named = isinstance(kind, Categories)
    levels = len(kind.names) if isinstance(kind, Categories) else kind.levels if isinstance(kind, Grid) else 0
    if named or 0 < levels <= _LEVELS:
        places = np.arange(min(levels, _LEVELS))
        for shift, rows, colour, label in (
            (-0.2, real, plots.GREY, "table"),
            (0.2, synthetic, plots.BLUE, "synthetic"),
        ):
            known = rows[~np.isnan(rows)]
            shares = [float((np.rint(known) == place).mean()) for place in places]
            axes.bar(places + shift, shares, 0.4, color=colour, label=label)
        ticks = places[:: max(1, len(places) // 4)]
        axes.set_xticks(ticks, [plots.plain(value)[:12] for value in kind.decode(ticks.astype(float))])
        return
    if isinstance(kind, Constant):
        axes.set_xticks([])
        axes.text(0.5, 0.5, f"always {plots.plain(kind.value)[:24]}", ha="center", transform=axes.transAxes, fontsize=8)
        return
    drawn = [_values(kind, rows[~np.isnan(rows)]) for rows in (real, synthetic)]
    edges = _edges(kind, *np.quantile(drawn[0], [0.002, 0.998]))
    drawn = [np.clip(values, edges[0], edges[-1]) for values in drawn]  # what is farther out is in the last bars
    axes.hist(drawn[0], edges, density=True, color=plots.GREY, alpha=0.6, label="table")
    axes.hist(drawn[1], edges, density=True, histtype="step", color=plots.BLUE, label="synthetic")


def _left_out(kind: Column) -> str:
    """How many names a picture does not show."""
    more = len(kind.names) - _LEVELS if isinstance(kind, Categories) else 0
    return f" (and {more} more names)" if more > 0 else ""


def _edges(kind: Column, low: float, high: float) -> list[float]:
    """Of about 30 bars between two values; each holds as many of the values that a grid has."""
    if isinstance(kind, Grid):
        width = kind.spacing * max(1.0, np.ceil((high - low) / kind.spacing / 30.0))
        return np.arange(low - 0.5 * kind.spacing, high + width, width).tolist()
    return np.linspace(low, high if high > low else low + 1.0, 30).tolist()


def _values(kind: Column, numbers: Array) -> Array:
    """In units of the table."""
    found: Array = kind.decode(numbers).astype(float)
    return found


def _correlations(columns: Columns, table: pd.DataFrame, synthetic: pd.DataFrame) -> Figure:
    """Spearman's correlations of all columns; names count by how frequent they are."""
    figure = Figure(figsize=(8.0, 3.9), layout="constrained")
    names = [plots.plain(table.columns[d])[:14] for d in columns.modelled]
    panels = figure.subplots(1, 2)
    for axes, title, rows in zip(panels, ("table", "synthetic"), (table, synthetic), strict=True):
        numbers = pd.DataFrame(columns.encode(rows)[:, columns.modelled])
        picture = axes.imshow(numbers.corr("spearman").to_numpy(), vmin=-1.0, vmax=1.0, cmap="RdBu_r")
        axes.set_title(title, fontsize=9)
        axes.set(xticks=[], yticks=[])
        if len(names) <= _SHOWN:
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
            axes.set_yticks(range(len(names)), names, fontsize=6)
    figure.colorbar(picture, ax=panels, shrink=0.8)
    return figure
