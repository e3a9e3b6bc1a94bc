"""Synthetic values with the precision of the table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from arcsm.estimators import ScoreDensity
from arcsm.estimators.column_inference import detect_grid
from arcsm.estimators.rounding import decimals_of, round_like
from small_tables import QUICK, correlated_table, use_small_models


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)


def test_synthetic_values_have_the_decimals_of_the_table() -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame({"cents": np.round(random.lognormal(4, 1, 200), 2), "all": correlated_table(200)["a"]})
    table["small"] = table["cents"] * 1e-7
    table["thirds"] = np.round(random.poisson(9.0, 200) / 3.0, 2)
    table["tenths"] = random.poisson(9.0, 200) * 0.1  # 0.30000000000000004 among them
    table["single"] = table["cents"].astype(np.float32)
    table["ninths"] = np.round(random.normal(size=200), 9)
    density = ScoreDensity(**QUICK).fit(table)
    drawn = density.sample(50)
    found = round_like(decimals_of(table, density.columns_), drawn, fixed=["all"])
    assert found["thirds"].isin(np.round(np.arange(60) / 3.0, 2)).all()
    assert (found["tenths"].isin(table["tenths"]) | ~found["tenths"].round(1).isin(table["tenths"].round(1))).all()
    for name, decimals in {"cents": 2, "single": 2, "ninths": 9}.items():
        assert (found[name] == found[name].round(decimals)).all()
        assert not found[name].equals(drawn[name])
    assert found["single"].dtype == np.float32
    pd.testing.assert_frame_equal(found[["all", "small"]], drawn[["all", "small"]])
    unrounded = round_like(decimals_of(table, density.columns_), drawn, fixed=["cents"])
    assert unrounded["cents"].equals(drawn["cents"])


def test_a_third_that_no_row_has_is_rounded_like_the_others() -> None:
    thirds = np.round(np.delete(np.arange(1, 40), 1) / 3.0, 2)  # without 0.67
    grid = detect_grid(np.repeat(thirds, 5))
    assert grid is not None
    np.testing.assert_array_equal(grid.decode(np.arange(-1.0, 3.0)).round(4), [0.33, 0.33, 0.6667, 1.0])
    with_zero = replace(grid, room=(1, 0))
    assert with_zero.decode(np.array([-1.0])) == [0.0]
