"""What the page computes for rows of tables."""

from __future__ import annotations

import pytest

from arcsm.cli.web.tables import TableExplorer
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


def test_invalid_rows_are_rejected() -> None:
    with pytest.raises(ValueError, match="b: expected a number, got nan"):
        TableExplorer(table_model()).to_row([1.0, float("nan"), 2.0])
