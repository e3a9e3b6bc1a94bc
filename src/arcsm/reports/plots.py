"""Figures: each function takes numbers and returns a matplotlib figure that the caller owns."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from arcsm.metrics import Uniformity

BLUE, ORANGE, GREEN, GREY = "#2a6f97", "#e07a1f", "#4c956c", "#8a8f98"

_BINS = 20  # of a histogram of PIT values
_MAX_POINTS = 4_000  # of a scatter plot
_GRID_POINTS = 120  # of a density, along each axis
_MAX_COLUMNS = 12  # of a table


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
    axes.legend(frameon=False)
    return figure


def pit_histogram(u: Tensor, uniformity: Uniformity) -> Figure:
    """Plot a histogram of PIT values, with the 95 % interval of a bar's height under uniformity."""
    figure, [axes] = open_panels(6.4, 2.8)
    values = u.flatten().cpu().numpy()
    deviation = 1.96 * np.sqrt(_BINS / max(1, len(values)))
    axes.axhspan(1.0 - deviation, 1.0 + deviation, color=ORANGE, alpha=0.25, label="95 % interval if uniform")
    axes.hist(values, bins=_BINS, range=(0.0, 1.0), density=True, color=BLUE, alpha=0.85)
    axes.axhline(1.0, color=ORANGE, linewidth=1.0)
    axes.set(xlabel=r"$F(x_d \mid x_{<d})$ of held-out values", ylabel="density")
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
    for axes, title in zip(panels, ("data", "samples", "density"), strict=True):
        axes.set(xlim=extent[:2], ylim=extent[2:], title=title, xlabel=plain(columns[0]), ylabel=plain(columns[1]))
    return figure


def marginals(real: Tensor, samples: Tensor, columns: Sequence[str]) -> Figure:
    """Plot histograms of the first columns of a table, of real rows and of samples."""
    figure, panels = column_panels([plain(name) for name in columns[:_MAX_COLUMNS]], 2.4, 1.9)
    for index, axes in enumerate(panels):
        values, drawn = (rows[:, index].cpu().numpy() for rows in (real, samples))
        compare_histograms(axes, values, drawn, even_edges(*np.quantile(values, [0.002, 0.998])), ("real", "samples"))
    panels[0].legend(frameon=False, fontsize=7)
    return figure


def column_panels(titles: Sequence[str], width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of small panels, at most four in a row, each ``width`` by ``height`` inches."""
    across = min(4, max(1, len(titles)))
    down = max(1, -(-len(titles) // across))
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    panels = [figure.add_subplot(down, across, place + 1) for place in range(len(titles))]
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
        open_frame(axes)
    return figure, panels


def even_edges(low: float, high: float) -> list[float]:
    """Return the edges of 29 equal bins."""
    return np.linspace(low, high if high > low else low + 1.0, 30).tolist()


def compare_histograms(
    axes: Axes, real: ArrayLike, synthetic: ArrayLike, edges: list[float], labels: tuple[str, str]
) -> None:
    """Draw a filled histogram of real values and the outline of one of synthetic values."""
    axes.hist(np.asarray(real), edges, density=True, color=GREY, alpha=0.6, label=labels[0])
    axes.hist(np.asarray(synthetic), edges, density=True, histtype="step", color=BLUE, label=labels[1])


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


def plain(name: object) -> str:
    """Escape dollar signs, which matplotlib would read as the start of a formula."""
    return str(name).replace("$", r"\$")


def open_frame(axes: Axes) -> None:
    """Hide the upper and right spines."""
    axes.spines[["top", "right"]].set_visible(False)
