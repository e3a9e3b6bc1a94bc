"""Gaps of synthetic rows are as frequent as those of fitted ones, and depend on the same values."""

import numpy as np
import pandas as pd
import pytest

from arcsm.estimators.gap_model import GapModel
from small_tables import quick_density


def rows_with_gaps(rows: int = 3000) -> np.ndarray:
    """Return rows whose second value is missing where the first is large, with the third; the last at random."""
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 5))
    x[:, 4] = random.integers(3, size=rows)
    missing = random.random(rows) < 1.0 / (1.0 + np.exp(-4.0 * (x[:, 0] - 0.5)))
    x[missing, 1] = x[missing, 2] = np.nan
    x[random.random(rows) < 0.1, 3] = np.nan
    return x


def test_gaps_have_the_shares_and_dependences_of_the_table() -> None:
    table, random = rows_with_gaps(), np.random.default_rng(1)
    model = GapModel.of_rows(table, np.arange(300))
    assert model.same == {1: 1, 2: 1, 3: 3}
    complete = np.column_stack([random.normal(size=(20_000, 4)), random.integers(3, size=20_000)])
    drawn = model.draw(complete, random)
    found = np.isnan(drawn)
    assert ((drawn == complete) | found).all()
    assert not found[:, [0, 4]].any()
    assert (found[:, 1] == found[:, 2]).all()
    assert found[:, 3].mean() == pytest.approx(0.1, abs=0.02)
    for low, high in ((-3.0, -0.5), (-0.5, 0.5), (0.5, 3.0)):
        here, there = ((low < rows[:, 0]) & (rows[:, 0] < high) for rows in (complete, table))
        expected = np.isnan(table[there, 1]).mean()
        assert found[here, 1].mean() == pytest.approx(expected, abs=0.06)


def test_gaps_at_the_end_of_a_long_table_count() -> None:
    rows = np.zeros((50_000, 2))
    rows[40_000:, 1] = np.nan
    drawn = GapModel.of_rows(rows, np.arange(0, 50_000, 10)).draw(np.zeros((20_000, 2)), np.random.default_rng(0))
    assert np.isnan(drawn[:, 1]).mean() == pytest.approx(0.2, abs=0.02)


def test_rows_without_gaps_have_no_model() -> None:
    assert GapModel.of_rows(np.zeros((4, 2)), np.arange(2)) is None


def test_synthetic_rows_have_gaps_if_asked() -> None:
    rows = pd.DataFrame(rows_with_gaps(400), columns=list("abcde"))
    rows["e"] = rows["e"].map({0.0: "red", 1.0: "green", 2.0: "blue"})
    rows.loc[::7, "e"] = None
    density = quick_density(rows)
    assert not density.sample(200, 0).isna().any().any()
    drawn = density.sample(500, 0, gaps=True)
    assert (drawn.dtypes == rows.dtypes).all()
    np.testing.assert_allclose(drawn.isna().mean(), rows.isna().mean(), atol=0.12)
    pd.testing.assert_frame_equal(drawn, density.sample(500, 0, gaps=True))
