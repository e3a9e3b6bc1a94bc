"""Figures: each function takes numbers and returns a matplotlib figure that the caller owns."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from torch import Tensor

from arcsm.metrics import Uniformity
from arcsm.reports.figure_text import drawable_text

LABEL_CHARACTERS = 46  # of the labels of ticks, that fit under a small panel
BLUE, ORANGE, GREEN, GREY = "#2a6f97", "#e07a1f", "#4c956c", "#8a8f98"

_BINS = 20  # of a histogram of PIT values
_MAX_POINTS = 4_000  # of a scatter plot
_GRID_POINTS = 120  # of a density, along each axis
_MAX_COLUMNS = 12  # of a table
_ARROW_ROOM = 1.25  # height of a panel with an arrow, as a multiple of that of what is drawn
_LABEL_GAP = 3  # characters between two labels
_REACH = 2.0  # how far from an interval a value may lie for an axis to extend to it, in lengths of the interval


class Panel(NamedTuple):
    """A small figure on a page: the caption above it, its data URI (``None`` if there is only text), and a note below.

    Captions are text of the page, which can show any name of a column.
    """

    caption: str
    picture: str | None
    note: str = ""


def open_panels(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure, in inches, and its panels row by row, with open frames; see ``Figure.subplots`` for options."""
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, **options).flatten().tolist()
    for axes in panels:
        open_frame(axes)
    return figure, panels


def training_curve(history: Sequence[dict[str, float]]) -> Figure:
    """Plot training and validation objective against the step."""
    figure, [axes] = open_panels(6.4, 3.2)
    steps = [row["step"] for row in history]
    axes.plot(steps, [row["loss"] for row in history], color=GREY, label="training (running mean)")
    if validations := [row for row in history if "valid" in row]:
        steps = [row["step"] for row in validations]
        axes.plot(steps, [row["valid"] for row in validations], color=BLUE, label="validation")
    # the first values are orders of magnitude larger: scale the axis to the end of the curve
    values = np.array([row.get("valid", row["loss"]) for row in history])
    low, high = float(values.min()), float(np.quantile(values, 0.9))
    if high > low:
        axes.set_ylim(low - 0.1 * (high - low), high + 0.3 * (high - low))
    axes.set(xlabel="optimizer step", ylabel="objective")
    axes.legend(frameon=False, loc="upper right")
    return figure


def pit_histogram(u: Tensor, uniformity: Uniformity) -> Figure:
    """Plot a histogram of PIT values, with the 95 % interval of a bar's height under uniformity."""
    figure, [axes] = open_panels(6.4, 2.8)
    values = u.flatten().cpu().numpy()
    deviation = 1.96 * np.sqrt(_BINS / max(1, len(values)))
    axes.axhspan(1.0 - deviation, 1.0 + deviation, color=ORANGE, alpha=0.25, label="95 % interval if uniform")
    axes.hist(values, bins=_BINS, range=(0.0, 1.0), density=True, color=BLUE, alpha=0.85)
    axes.axhline(1.0, color=ORANGE, linewidth=1.0)
    axes.set(xlabel="PIT of held-out values", ylabel="density")
    axes.set_title(f"KS distance {uniformity.statistic:.4f}, n = {uniformity.count:,}", fontsize=10)
    axes.legend(frameon=False, loc="lower center")
    return figure


def plane(
    real: Tensor, samples: Tensor, log_prob: Callable[[Tensor], Tensor], columns: Sequence[str] = ("x", "y")
) -> Figure:
    """Plot two-dimensional data, samples and the learned density."""
    low, high = real.amin(0), real.amax(0)
    margin = 0.15 * (high - low)
    low, high = low - margin, high + margin
    axis = [torch.linspace(float(low[d]), float(high[d]), _GRID_POINTS) for d in (0, 1)]
    density = torch.exp(log_prob(torch.cartesian_prod(*axis))).view(_GRID_POINTS, _GRID_POINTS).T.cpu().numpy()
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
    panels = figure.subplots(1, 3)
    for axes, rows in zip(panels, (real, samples), strict=False):
        points = rows[:_MAX_POINTS].cpu()
        axes.scatter(points[:, 0], points[:, 1], s=1.5, alpha=0.4, color=BLUE, linewidths=0)
    panels[2].imshow(density, origin="lower", extent=extent, aspect="auto", cmap="magma", interpolation="bilinear")
    names, style = drawable_text(columns)
    for axes, title in zip(panels, ("data", "samples", "density"), strict=True):
        axes.set(xlim=extent[:2], ylim=extent[2:], title=title)
        axes.set_xlabel(names[0], **style)
        axes.set_ylabel(names[1], **style)
    return figure


def marginals(real: Tensor, samples: Tensor, columns: Sequence[str]) -> list[Panel]:
    """Return histograms of the first columns of a table, of real rows and of samples."""
    panels = []
    for index, name in enumerate(columns[:_MAX_COLUMNS]):
        values, drawn = (rows[:, index].cpu().numpy() for rows in (real, samples))
        figure, axes = open_panel()
        beyond = compare_histograms(axes, values, drawn, even_edges(*np.quantile(values, [0.002, 0.998])))
        thin_ticks(axes)
        panels.append(Panel(str(name), embedded(figure), beyond))
    return panels


def column_panels(titles: Sequence[str], width: float, height: float, **style: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure of small panels, at most four in a row, each ``width`` by ``height`` inches."""
    across = min(4, max(1, len(titles)))
    down = max(1, -(-len(titles) // across))
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    panels = [figure.add_subplot(down, across, place + 1) for place in range(len(titles))]
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=9, **style)
        axes.tick_params(labelsize=7)
        open_frame(axes)
    return figure, panels


def open_panel() -> tuple[Figure, Axes]:
    """Return a small figure with one panel, whose vertical axis has no scale."""
    figure, [axes] = open_panels(3.0, 1.9)
    axes.tick_params(labelsize=7)
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.xaxis.get_offset_text().set_fontsize(7)
    axes.set_yticks([])
    return figure, axes


def thin_ticks(axes: Axes, whole: bool = False) -> None:
    """Choose so few numbers, only ``whole`` ones if wanted, on the horizontal axis of a small panel that none touch."""
    low, high = axes.get_xlim()
    for count in range(6, 0, -1):
        axes.xaxis.set_major_locator(MaxNLocator(count, integer=whole))
        shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
        labels = axes.xaxis.get_major_formatter().format_ticks(shown)
        if sum(len(label) + _LABEL_GAP for label in labels) <= LABEL_CHARACTERS:
            return


def even_edges(low: float, high: float) -> list[float]:
    """Return the edges of 29 equal bins."""
    return np.linspace(low, high if high > low else low + 1.0, 30).tolist()


def compare_histograms(axes: Axes, real: ArrayLike, synthetic: ArrayLike, edges: list[float]) -> str:
    """Draw a filled histogram of real values and the outline of one of synthetic values.

    Return a remark on the values beyond the edges, which are not drawn; empty if there are none.
    """
    beyond = []
    styles: list[dict[str, Any]] = [{"color": GREY, "alpha": 0.6}, {"color": BLUE, "histtype": "step"}]
    for values, style in zip((np.asarray(real), np.asarray(synthetic)), styles, strict=True):
        axes.hist(values, edges, weights=np.full(len(values), 1.0 / max(1, len(values))), **style)
        beyond.append(float(((values < edges[0]) | (values > edges[-1])).mean()))
    if not any(beyond):
        return ""
    return f"beyond the axis: {beyond[0]:.1%} of real, {beyond[1]:.1%} of synthetic values"


def within_reach(values: Any, low: float, high: float) -> Any:
    """Return which values an axis from ``low`` to ``high`` should extend to, rather than point to them."""
    reach = _REACH * (high - low)
    return (values >= low - reach) & (values <= high + reach)


def mark_value(axes: Axes, value: float, text: str) -> None:
    """Mark a value on the horizontal axis by a line, or by an arrow with its ``text`` if it lies beyond the axis."""
    low, high = axes.get_xlim()
    if low <= value <= high:
        axes.axvline(value, color=ORANGE)
        return
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, bottom + _ARROW_ROOM * (top - bottom))  # the arrow and its text lie above what is drawn
    edge, inside, side = (0.0, 0.12, "left") if value < low else (1.0, 0.88, "right")
    texts, style = drawable_text([text])
    axes.annotate(
        texts[0], (edge, 0.9), (inside, 0.9), "axes fraction", "axes fraction", color=ORANGE, fontsize=8, ha=side,
        va="center", arrowprops={"arrowstyle": "-|>", "color": ORANGE}, **style,
    )  # fmt: skip


def scatter(axes: Axes, rows: Tensor, title: str = "", limit: float | None = None, like: Tensor | None = None) -> None:
    """Draw rows ``(N, 2)`` as dots on a square around zero.

    The square extends to ``limit``, or else a little beyond the rows of ``like``, or of ``rows``.
    """
    points = rows[:_MAX_POINTS].cpu()
    axes.scatter(points[:, 0], points[:, 1], s=1.2, alpha=0.4, color=BLUE, linewidths=0, rasterized=True)
    extent = limit if limit is not None else 1.1 * float((rows if like is None else like).abs().max())
    axes.set(xlim=(-extent, extent), ylim=(-extent, extent), xticks=[], yticks=[])
    axes.set_aspect("equal")
    axes.set_title(title, fontsize=8)


def as_png(figure: Figure, dpi: int = 120) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def as_data_uri(png: bytes) -> str:
    """Return a data URI that holds a PNG image."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def embedded(figure: Figure) -> str:
    """Return a data URI that holds a figure."""
    return as_data_uri(as_png(figure))


def open_frame(axes: Axes) -> None:
    """Hide the upper and right spines."""
    axes.spines[["top", "right"]].set_visible(False)
