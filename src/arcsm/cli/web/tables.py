"""What the page does with rows of a table, apart from the page."""

from __future__ import annotations

import math

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from arcsm.cli.model_rows import columns_of
from arcsm.model import AutoregressiveModel
from arcsm.reports.plots import BLUE, open_frame, plain

_SHARE = 0.9  # of the probability that an expected range has
_POINTS = 160  # of a density that is drawn
_MOST_PANELS = 12


class TablePlay:
    """A model of a table, asked with rows.

    Arguments:
        model: The model; metadata may have names of the ``columns``.

    Raises:
        ValueError: for a model that needs a condition.
    """

    def __init__(self, model: AutoregressiveModel) -> None:
        if model.context.classes or model.context.condition_features:
            raise ValueError("serve: a table whose model needs a condition has no page yet; use arcsm sample or Python")
        self.model = model
        self.columns = [str(name) for name in columns_of(model)]
        with torch.no_grad():
            drawn = model.sample(512, generator=torch.Generator(model.shift.device).manual_seed(0))
        self.usual = drawn.median(0).values
        self.low, self.high = (torch.quantile(drawn, q, 0) for q in (0.001, 0.999))

    def row_of(self, values: list[float]) -> Tensor:
        """Values as a row ``(D,)``.

        Raises:
            ValueError: for a wrong number of values, or one that is no finite number.
        """
        if len(values) != len(self.columns):
            raise ValueError(f"row: expected {len(self.columns)} values, got {len(values)}")
        for name, value in zip(self.columns, values, strict=True):
            if not math.isfinite(value):
                raise ValueError(f"{name}: expected a number, got {value}")
        return torch.tensor(values).to(self.model.shift)

    @torch.no_grad()
    def judge(self, row: Tensor) -> tuple[float, pd.DataFrame]:
        """The row's log density in nats, and for every column what was to be expected given those before it.

        Columns are in order of surprise: by the chance that a value as far out comes up.
        """
        terms = self.model.log_prob(row[None], reduce=False)[0]
        u = self.model.cdf(row[None])[0].clamp(0.0, 1.0)
        edges = (0.5 * (1.0 - _SHARE), 0.5 * (1.0 + _SHARE))
        low, high = (self.model.conditional_icdf(row[None], edge)[0] for edge in edges)
        found = pd.DataFrame(
            {
                "column": self.columns,
                "value": row.tolist(),
                "expected from": low.tolist(),
                "to": high.tolist(),
                "as far out": (2.0 * torch.minimum(u, 1.0 - u)).tolist(),
                "log density": terms.tolist(),
            }
        )
        return float(terms.sum()), found.sort_values("as far out", ignore_index=True)

    @torch.no_grad()
    def densities(self, row: Tensor, columns: list[str] | None = None) -> Figure:
        """Densities of the first dozen columns (of those given) given those before them, with the values of the row."""
        shown = [self.columns.index(name) for name in (columns or self.columns)[:_MOST_PANELS]]
        across = min(4, len(shown))
        down = -(-len(shown) // across)
        figure = Figure(figsize=(2.6 * across, 1.8 * down), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False).flatten()
        for d, axes in zip(shown, panels, strict=False):
            span = self.high[d] - self.low[d]
            low, high = min(self.low[d], row[d] - 0.1 * span), max(self.high[d], row[d] + 0.1 * span)
            grid = torch.linspace(float(low), float(high), _POINTS).to(row)
            rows = row.repeat(_POINTS, 1)
            rows[:, d] = grid
            density = self.model.log_prob(rows, reduce=False)[:, d].exp()
            axes.fill_between(grid.cpu(), density.cpu(), color=BLUE, alpha=0.3, linewidth=0)
            axes.axvline(float(row[d]), color="black", linewidth=1)
            axes.set_title(plain(self.columns[d]), fontsize=8)
            axes.set_yticks([])
            axes.tick_params(labelsize=7)
            open_frame(axes)
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        return figure
