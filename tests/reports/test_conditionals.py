"""Pictures of what was expected of a value: where it lies, and which values are possible."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from arcsm.estimators.column_types import Array, Categories, Grid
from arcsm.estimators.continua import Identity
from arcsm.estimators.times import Times, infer_times
from arcsm.reports.conditionals import Conditional, draw_categories, draw_density, draw_levels
from arcsm.reports.plots import compare_histograms, mark_value, open_panel
from arcsm.reports.time_axes import label_times

COUNTS = Grid(1.0, 0.0, 6, whole=True)  # 0 to 5
HALVES = Grid(0.5, 2.0, 5, whole=False)  # 2 to 4
MANY = Grid(1.0, 0.0, 50_000, whole=True)


def flat(low: float, high: float) -> Conditional:
    return Conditional(low, high, lambda grid: np.full(len(grid), 0.1))


def marks(axes: Axes) -> list[object]:
    """Return what marks the observed value: the place of a line, or the text of an arrow."""
    return [*(float(line.get_xdata()[0]) for line in axes.lines), *(text.get_text() for text in axes.texts)]


def bars(axes: Axes) -> Array:
    return np.array([bar.get_x() + 0.5 * bar.get_width() for bar in axes.patches])


@pytest.mark.parametrize(
    ("value", "marked"),
    [(3.0, 3.0), (-4.0, -4.0), (60.0, "60"), (-1e6, "-1e6")],
)
def test_a_value_beyond_the_axis_is_an_arrow_with_its_number(value: float, marked: object) -> None:
    _, axes = open_panel()
    draw_levels(axes, COUNTS, value, flat(-3.2, 9.4))
    mark_value(axes, value, str(marked))
    assert marks(axes) == [marked]
    assert bars(axes).tolist() == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])  # the fitted counts, and no others
    assert -20.0 < axes.get_xlim()[0] < axes.get_xlim()[1] < 20.0


@pytest.mark.parametrize("kind", [COUNTS, HALVES, MANY])
def test_bars_stand_at_possible_values(kind: Grid) -> None:
    _, axes = open_panel()
    draw_levels(axes, kind, kind.low, flat(-10.0, 2.0 * kind.levels))
    if kind is MANY:  # one shape with steps
        corners = axes.collections[0].get_paths()[0].vertices
        values = np.unique(corners[:, 0])
        centres = np.concatenate([values[:1], 0.5 * (values[1:-2] + values[2:-1]), values[-1:]])
    else:
        centres = bars(axes)
    places = (centres - kind.low) / kind.spacing
    assert len(places) <= 160
    np.testing.assert_allclose(places, np.rint(places), atol=1e-6)
    assert places.min() == pytest.approx(0.0, abs=1e-6)
    assert places.max() <= kind.levels - 1 + 1e-6


@pytest.mark.parametrize(("value", "marked"), [(11.0, 11.0), (1e7, "far")])
def test_a_density_is_drawn_where_it_is_and_the_value_where_it_lies(value: float, marked: object) -> None:
    _, axes = open_panel()
    draw_density(axes, Identity(10.0, 2.0, 0.0, 20.0), value, flat(-1.0, 1.0))  # 8 to 12
    mark_value(axes, value, "far")
    assert marks(axes) == [marked]
    assert axes.get_xlim()[1] < 20.0


def test_a_category_that_was_never_seen_is_drawn_as_unlikely_as_it_is() -> None:
    kind = Categories(("a", "b", "c"), training_rows=98)
    _, axes = open_panel()
    rare = Conditional(0.0, 2.0, lambda grid: np.where(grid < 3.0, 0.1, 0.001))
    assert draw_categories(axes, kind, "new $", rare) == "No fitted row has this value."
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.1, 0.1, 0.1, 0.001])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c", "new $"]
    _, axes = open_panel()
    assert draw_categories(axes, kind, "b", flat(0.0, 2.0)) == ""
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]


def test_values_beyond_the_edges_of_a_histogram_are_counted() -> None:
    values = np.array([-9.0, 0.2, 0.4, 0.6])
    _, axes = open_panel()
    remark = compare_histograms(axes, values, values[1:], [0.0, 0.5, 1.0])
    assert remark == "beyond the axis: 25.0% of real, 0.0% of synthetic values"
    assert sum(bar.get_height() for bar in axes.patches[:2]) == pytest.approx(0.75)
    assert compare_histograms(axes, values[1:], values[1:], [0.0, 0.5, 1.0]) == ""


def test_axes_of_times_show_dates() -> None:
    kind = infer_times(pd.Series(pd.date_range("2024-01-01", periods=60)))
    assert isinstance(kind, Times)
    figure, axes = open_panel()
    axes.set_xlim(*kind.scale.count(pd.to_datetime(["2024-01-01", "2024-02-29"])))
    label_times(axes, kind)
    figure.canvas.draw()
    assert all(re.fullmatch(r"202[34]-\d\d-\d\d", label.get_text()) for label in axes.get_xticklabels())
