"""Pictures: each function takes numbers and returns a matplotlib figure that belongs to the caller."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from arcsm.metrics import Uniformity

BLUE, ORANGE, GREEN, GREY = "#2a6f97", "#e07a1f", "#4c956c", "#8a8f98"


def training_curve(history: Sequence[dict[str, float]]) -> Figure:
    """Training and validation objective against the step."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    steps = [row["step"] for row in history]
    axes.plot(steps, [row["loss"] for row in history], color=GREY, label="training (running mean)")
    if all("valid" in row for row in history):
        axes.plot(steps, [row["valid"] for row in history], color=BLUE, label="validation")
    # the first steps are orders of magnitude above the rest: show where the curve ends
    values = np.array([row.get("valid", row["loss"]) for row in history])
    low, high = float(values.min()), float(np.quantile(values, 0.9))
    if high > low:
        axes.set_ylim(low - 0.1 * (high - low), high + 0.3 * (high - low))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("objective")
    axes.legend(frameon=False)
    open_frame(axes)
    return figure


def pit_histogram(u: Tensor, uniformity: Uniformity) -> Figure:
    """Histogram of PIT values, with the band that chance leaves around the uniform."""
    bins = 20
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    axes = figure.add_subplot()
    values = u.flatten().cpu().numpy()
    chance = 1.96 * np.sqrt(bins / max(1, len(values)))
    axes.axhspan(1.0 - chance, 1.0 + chance, color=ORANGE, alpha=0.25, label="95 % of chance")
    axes.hist(values, bins=bins, range=(0.0, 1.0), density=True, color=BLUE, alpha=0.85)
    axes.axhline(1.0, color=ORANGE, linewidth=1.0)
    axes.set_xlabel(r"$F(x_d \mid x_{<d})$ of held-out values")
    axes.set_ylabel("density")
    axes.set_title(f"KS distance {uniformity.statistic:.4f}, n = {uniformity.count:,}", fontsize=10)
    axes.legend(frameon=False, loc="lower center")
    open_frame(axes)
    return figure


def plane(
    real: Tensor, samples: Tensor, log_prob: Callable[[Tensor], Tensor], columns: Sequence[str] = ("x", "y")
) -> Figure:
    """Two-dimensional data, samples, and the learned density on a grid."""
    low, high = real.amin(0), real.amax(0)
    margin = 0.15 * (high - low)
    low, high = low - margin, high + margin
    axis = [torch.linspace(float(low[d]), float(high[d]), 120) for d in (0, 1)]
    grid = torch.cartesian_prod(*axis)
    density = torch.exp(log_prob(grid)).view(120, 120).T.cpu().numpy()
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
    for index, (title, rows) in enumerate((("data", real), ("samples", samples))):
        axes = figure.add_subplot(1, 3, index + 1)
        axes.scatter(rows[:4000, 0].cpu(), rows[:4000, 1].cpu(), s=1.5, alpha=0.4, color=BLUE, linewidths=0)
        _frame_plane(axes, extent, title, columns)
    axes = figure.add_subplot(1, 3, 3)
    axes.imshow(density, origin="lower", extent=extent, aspect="auto", cmap="magma", interpolation="bilinear")
    _frame_plane(axes, extent, "density", columns)
    return figure


def marginals(real: Tensor, samples: Tensor, columns: Sequence[str]) -> Figure:
    """Histograms of the first columns of a table, real rows and samples."""
    shown = min(len(columns), 12)
    across = min(4, shown)
    down = -(-shown // across)
    figure = Figure(figsize=(2.4 * across, 1.9 * down), layout="constrained")
    for index in range(shown):
        axes = figure.add_subplot(down, across, index + 1)
        values = real[:, index].cpu().numpy()
        low, high = (float(q) for q in np.quantile(values, [0.002, 0.998]))
        edges = np.linspace(low, high if high > low else low + 1.0, 30).tolist()
        axes.hist(values, bins=edges, density=True, color=GREY, alpha=0.6, label="real")
        axes.hist(
            samples[:, index].cpu().numpy(), bins=edges, density=True, histtype="step", color=BLUE, label="samples"
        )
        axes.set_title(plain(columns[index]), fontsize=9)
        axes.tick_params(labelsize=7)
        open_frame(axes)
        if index == 0:
            axes.legend(frameon=False, fontsize=7)
    return figure


def as_png(figure: Figure, dpi: int = 120) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def as_data_uri(png: bytes) -> str:
    """PNG bytes as an address that holds the picture itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def plain(name: object) -> str:
    """A name out of somebody's data as a picture shows it, to the letter: dollars begin no formula."""
    return str(name).replace("$", r"\$")


def open_frame(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _frame_plane(axes: Axes, extent: tuple[float, ...], title: str, columns: Sequence[str]) -> None:
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])
    axes.set_title(title)
    axes.set_xlabel(plain(columns[0]))
    axes.set_ylabel(plain(columns[1]))


def scatter(axes: Axes, rows: Tensor, title: str = "", limit: float | None = None, like: Tensor | None = None) -> None:
    """Rows ``(N, 2)`` as dots on a square, as far as ``limit`` from zero or as the rows of ``like`` reach."""
    axes.scatter(
        rows[:4000, 0].cpu(), rows[:4000, 1].cpu(), s=1.2, alpha=0.4, color=BLUE, linewidths=0, rasterized=True
    )
    reach = limit if limit is not None else 1.1 * float((rows if like is None else like).abs().max())
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[])
    axes.set_aspect("equal")
    axes.set_title(title, fontsize=8)
