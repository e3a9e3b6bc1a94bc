"""Columns of a table as numbers."""

from __future__ import annotations

from arcsm.estimators.encoder import Columns
from small_tables import mixed_table


def test_columns_are_inferred_and_described() -> None:
    columns = Columns.infer(mixed_table())
    assert [type(kind).__name__ for kind in columns.kinds] == [
        "Identity",
        "Grid",
        "Categories",
        "Categories",
        "Constant",
        "Power",
    ]
    assert columns.modelled == [0, 1, 2, 3, 5]
    assert columns.describe() == "6 columns: 2 continuous, 1 discrete, 2 categorical, 1 constant"
