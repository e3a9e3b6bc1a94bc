"""What the page computes for models of tables, independent of Gradio."""

import math

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from arcsm.cli.model_rows import column_names
from arcsm.model import AutoregressiveModel
from arcsm.reports.figure_text import drawable_text
from arcsm.reports.plots import BLUE, column_panels, mark_value, within_reach

_COVERAGE = 0.9  # probability of an expected range
_SAMPLES = 512  # for a typical row and the ranges of plots
_GRID_POINTS = 160
_MAX_PANELS = 12


class TableExplorer:
    """Evaluate rows of a table and plot conditional densities for the page, by a model without conditions."""

    def __init__(self, model: AutoregressiveModel) -> None:
        if model.context.classes or model.context.condition_features:
            raise ValueError("serve: conditional table models are not supported; use arcsm sample or Python")
        self.model = model
        self.columns = [str(name) for name in column_names(model)]
        with torch.no_grad():
            samples = model.sample(_SAMPLES, generator=torch.Generator(model.shift.device).manual_seed(0))
        self.median_row = samples.median(0).values
        self.low, self.high = (torch.quantile(samples, q, 0) for q in (0.001, 0.999))

    def to_row(self, values: list[float]) -> Tensor:
        """Convert values, one finite number for each column, to a row ``(D,)``."""
        if len(values) != len(self.columns):
            raise ValueError(f"row: expected {len(self.columns)} values, got {len(values)}")
        for name, value in zip(self.columns, values, strict=True):
            if not math.isfinite(value):
                raise ValueError(f"{name}: expected a number, got {value}")
        return torch.tensor(values).to(self.model.shift)

    @torch.no_grad()
    def evaluate(self, row: Tensor) -> tuple[float, pd.DataFrame]:
        """Return the row's log density in nats and a table of its values with their expected ranges.

        Columns are sorted by the probability of a value at least as extreme, given the earlier columns.
        """
        terms = self.model.log_prob(row[None], reduce=False)[0]
        u = self.model.cdf(row[None])[0].clamp(0.0, 1.0)
        edges = (0.5 * (1.0 - _COVERAGE), 0.5 * (1.0 + _COVERAGE))
        low, high = (self.model.conditional_icdf(row[None], edge)[0] for edge in edges)
        columns = {
            "column": self.columns,
            "value": row.tolist(),
            "expected from": low.tolist(),
            "expected to": high.tolist(),
            "probability": (2.0 * torch.minimum(u, 1.0 - u)).tolist(),
            "log density": terms.tolist(),
        }
        return float(terms.sum()), pd.DataFrame(columns).sort_values("probability", ignore_index=True)

    @torch.no_grad()
    def densities(self, row: Tensor, columns: list[str] | None = None) -> Figure:
        """Plot the density of each column given the earlier ones, for the first dozen of ``columns``."""
        indices = [self.columns.index(name) for name in (columns or self.columns)[:_MAX_PANELS]]
        titles, style = drawable_text([self.columns[d] for d in indices], 28)
        figure, panels = column_panels(titles, 2.6, 1.8, **style)
        for d, axes in zip(indices, panels, strict=True):
            low, high, value = float(self.low[d]), float(self.high[d]), float(row[d])
            if within_reach(value, low, high):
                margin = 0.1 * (high - low)
                low, high = min(low, value - margin), max(high, value + margin)
            grid = torch.linspace(low, high, _GRID_POINTS).to(row)
            rows = row.repeat(_GRID_POINTS, 1)
            rows[:, d] = grid
            density = self.model.log_prob(rows, reduce=False)[:, d].exp()
            axes.fill_between(grid.cpu(), density.cpu(), color=BLUE, alpha=0.3, linewidth=0)
            axes.set_xlim(low, high)
            mark_value(axes, value, f"{value:,.6g}")
            axes.set_yticks([])
        return figure
