"""Synthetic rows as a table has them, and how like it they are: told from rows that were not fitted, or copies."""

from __future__ import annotations

import math
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

from arcsm import plots
from arcsm.checkpoint import write_text
from arcsm.estimators.base import Array
from arcsm.estimators.columns import Categories, Column, Columns, Continuous, Grid, describe
from arcsm.estimators.density import ScoreDensity
from arcsm.report import render

_LEAST = 50  # held-out rows, and half of the synthetic ones, below which nothing is said
_COMPARED = 5_000  # rows of each kind, at most
_NEAR = 0.05  # share of held-out rows that count as near to a fitted one
_DECIMALS = 8  # of a column's values, beyond which they are not rounded
_LOOKED_AT = 10_000  # values of a column whose decimals are counted
_LEVELS = 24  # bars of a discrete column
_SHOWN = 24  # columns that are drawn
_ROWS_ON_PAGE = 10


@dataclass(frozen=True)
class Likeness:
    """How like a table synthetic rows are.

    Attributes:
        held_out: Rows of the table that the models did not learn from, and that the others are compared with.
        auc: Area under the ROC curve of gradient-boosted trees that tell held-out rows from synthetic ones, after they
            were shown the fitted rows and other synthetic ones; 0.5 where they cannot tell. Synthetic rows get the gaps
            of rows of the table. ``None`` for too few rows.
        auc_error: Its standard error, over the rows.
        copies: Share of synthetic rows that are equal to a fitted one.
        held_out_copies: Share of held-out rows that are.
        near: Share of synthetic rows that are as near to a fitted one as the nearest 5 % of held-out rows are: more
            than that says that rows were learned by heart. ``None`` for too few rows.
    """

    held_out: int
    auc: float | None
    auc_error: float | None
    copies: float
    held_out_copies: float | None
    near: float | None

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
        rows, ours = columns.encode(table), columns.encode(synthetic)
        held = np.zeros(len(rows), dtype=bool)
        held[density.held_out_rows_] = True
        if held.all() or held.sum() < _LEAST or len(ours) < 2 * _LEAST or not columns.modelled:
            fitted = rows if held.all() else rows[~held]  # of a handful of rows, those held out were fitted, too
            return cls(int(held.sum()), None, None, _copies(ours, fitted), None, None)
        fitted, theirs = rows[~held], rows[held]
        known, others, drawn = (_some(kind, random)[:, columns.modelled] for kind in (fitted, theirs, ours))
        auc, error = _told_apart(known, others, drawn, seed, random)
        near = _near(columns, known, others, drawn)
        return cls(len(theirs), auc, error, _copies(ours, fitted), _copies(theirs, fitted), near)

    def lines(self) -> list[str]:
        """What is said of it, for people."""
        if self.auc is None:
            said = [f"too few rows to tell how like the table they are: {_LEAST} held-out and {2 * _LEAST} synthetic"]
            return [*said, f"copies of fitted rows: {self.copies:.1%}"]
        return [
            f"told from {self.held_out} held-out rows by trees: AUC {self.auc:.3f} +- {self.auc_error:.3f} "
            "(0.5: not at all, 1: always)",
            f"copies of fitted rows: {self.copies:.1%} (of held-out rows {self.held_out_copies:.1%} are)",
            f"as near to a fitted row as the nearest {_NEAR:.0%} of held-out rows: {self.near:.1%}",
        ]


def _some(rows: Array, random: np.random.Generator) -> Array:
    return rows if len(rows) <= _COMPARED else rows[random.permutation(len(rows))[:_COMPARED]]


def _copies(rows: Array, of: Array) -> float:
    """Share of rows that are equal to one of others, gaps included."""
    known = {row.tobytes() for row in of + 0.0}  # one zero
    return float(np.mean([row.tobytes() in known for row in rows + 0.0]))


def _told_apart(
    fitted: Array, held_out: Array, synthetic: Array, seed: int, random: np.random.Generator
) -> tuple[float, float]:
    """How well trees tell synthetic rows from held-out ones: area under the curve, and its standard error."""
    count = min(len(held_out), len(synthetic) // 2)
    fitted, held_out, synthetic = (rows[random.permutation(len(rows))] for rows in (fitted, held_out, synthetic))
    seen, judged = synthetic[count:], np.concatenate([held_out[:count], _with_gaps(synthetic[:count], held_out)])
    rows = np.concatenate([fitted, _with_gaps(seen, fitted[random.integers(len(fitted), size=len(seen))])])
    trees = HistGradientBoostingClassifier(random_state=seed).fit(rows, np.repeat([0, 1], [len(fitted), len(seen)]))
    auc = float(roc_auc_score(np.repeat([0, 1], count), trees.predict_proba(judged)[:, 1]))
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


def _near(columns: Columns, fitted: Array, held_out: Array, synthetic: Array) -> float:
    """Share of synthetic rows within the distance of a fitted one that so many held-out rows are within."""
    middle, scale = np.nanmedian(fitted, 0), np.nanstd(fitted, 0)
    names = [m for m, d in enumerate(columns.modelled) if isinstance(columns.kinds[d], Categories)]

    def places(rows: Array) -> Array:
        """Numbers in one unit; two names are as far apart as any others."""
        filled = np.where(np.isnan(rows), middle, rows)
        numbers = np.delete((filled - middle) / np.where(scale > 0.0, scale, 1.0), names, 1)
        levels = [np.eye(int(np.nanmax(fitted[:, m])) + 2)[filled[:, m].astype(int).clip(0, None)] for m in names]
        return np.concatenate([numbers, *(one / np.sqrt(2.0) for one in levels)], 1)

    search = NearestNeighbors(n_neighbors=1).fit(places(fitted))
    theirs, ours = (search.kneighbors(places(rows))[0][:, 0] for rows in (held_out, synthetic))
    return float((ours <= np.quantile(theirs, _NEAR)).mean())


# As the table has them ----------------------------------------------------------------------------------------------


def as_precise_as(table: pd.DataFrame, columns: Columns, rows: pd.DataFrame, as_text: bool = False) -> pd.DataFrame:
    """Synthetic rows whose continuous values have as many decimals as those of the table.

    Arguments:
        table: Rows that were fitted.
        columns: What its columns were taken for.
        rows: Those that were drawn.
        as_text: Whether they are to be text: whole numbers then are written as such, whatever their type.
    """
    rows = rows.copy()
    for name, kind in zip(table.columns, columns.kinds, strict=True):
        if not pd.api.types.is_float_dtype(rows[name].dtype):
            continue
        if isinstance(kind, Continuous):
            decimals = _decimals(table[name])
            if decimals is not None:
                rows[name] = rows[name].round(decimals)
        elif as_text and isinstance(kind, Grid) and kind.whole:
            rows[name] = rows[name].astype(np.int64)
    return rows


def _decimals(column: pd.Series) -> int | None:
    """The most decimals that a value of a column has; ``None`` where they are too many to have been written so."""
    known = column.dropna().iloc[:_LOOKED_AT].tolist()
    most = max(0, *(-int(Decimal(repr(float(value))).normalize().as_tuple().exponent) for value in known))
    return most if most <= _DECIMALS else None


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
    pictures = [("Columns", _picture(_marginals(density.columns_, table, synthetic)))]
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
    for d, kind in enumerate(columns.kinds[:shown]):
        axes = figure.add_subplot(-(-shown // across), across, d + 1)
        _both(axes, kind, real[:, d], ours[:, d])
        axes.set_title(plots.plain(table.columns[d]), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.set_yticks([])
        plots.open_frame(axes)
        if d == 0:
            axes.legend(frameon=False, fontsize=7)
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
    drawn = [_values(kind, rows[~np.isnan(rows)]) for rows in (real, synthetic)]
    edges = _edges(kind, *np.quantile(drawn[0], [0.002, 0.998]))
    axes.hist(drawn[0], edges, density=True, color=plots.GREY, alpha=0.6, label="table")
    axes.hist(drawn[1], edges, density=True, histtype="step", color=plots.BLUE, label="synthetic")


def _edges(kind: Column, low: float, high: float) -> list[float]:
    """Of about 30 bars between two values; each holds as many of the values that a grid has."""
    if isinstance(kind, Grid):
        width = kind.spacing * max(1.0, np.ceil((high - low) / kind.spacing / 30.0))
        return np.arange(low - 0.5 * kind.spacing, high + width, width).tolist()
    return np.linspace(low, high if high > low else low + 1.0, 30).tolist()


def _values(kind: Column, numbers: Array) -> Array:
    """In units of the table; zeros for a constant, whatever it is."""
    found: NDArray[np.float64] = kind.decode(numbers).astype(float) if isinstance(kind, Continuous | Grid) else numbers
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
