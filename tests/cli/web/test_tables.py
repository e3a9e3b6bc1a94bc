"""What the page computes for rows of tables."""

from __future__ import annotations

import warnings

import pytest

from arcsm.cli.web.tables import TableExplorer
from arcsm.reports.plots import as_png
from small_web_models import table_model


def test_evaluation_sorts_columns_by_probability() -> None:
    model = table_model()
    explorer = TableExplorer(model)
    typical = explorer.to_row(explorer.median_row.tolist())
    unusual = typical.clone()
    unusual[1] += 30.0
    total, result = explorer.evaluate(unusual)
    assert total == pytest.approx(model.log_prob(unusual[None]).item(), abs=1e-4)
    assert result["column"][0] == "b"
    assert result["probability"][0] < 1e-6
    assert result["expected from"][0] < result["expected to"][0] < result["value"][0]
    assert explorer.evaluate(typical)[1]["probability"].min() > 0.5
    assert len(explorer.densities(unusual).axes) == 3


def test_a_value_far_out_gets_an_arrow_and_names_cause_no_warning() -> None:
    model = table_model()
    names = ["$x_1$", "年齢", "_c"]
    model.metadata["columns"] = names
    explorer = TableExplorer(model)
    row = explorer.median_row.clone()
    row[1] += 1e6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = explorer.densities(row)
        as_png(figure)
    first, second, _ = figure.axes
    assert first.get_title() == "$x_1$"
    assert first.lines[0].get_xdata()[0] == pytest.approx(float(row[0]))
    assert second.get_xlim()[1] < 1e3
    assert [text.get_text() for text in second.texts] == ["1e+06"]


@pytest.mark.parametrize(
    ("values", "message"),
    [([1.0, 2.0], "expected 3 values, got 2"), ([1.0, float("nan"), 2.0], "b: expected a number, got nan")],
)
def test_invalid_rows_are_rejected(values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TableExplorer(table_model()).to_row(values)
