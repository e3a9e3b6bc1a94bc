"""Column types: inference, inverses and slopes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from arcsm.estimators.column_inference import NumberRules, infer_column
from arcsm.estimators.column_types import Categories, Column, Constant, Grid
from arcsm.estimators.continua import Asinh, Continuous, Identity, Power


def column_values(name: str, count: int = 500) -> Any:
    rng = np.random.default_rng(0)
    return {
        "normal": rng.normal(5.0, 2.0, count),
        "heavy": stats.t(1.5).rvs(count, random_state=rng) * 3.0 + 1.0,
        "skewed": np.exp(rng.normal(size=count)),
        "bounded": rng.beta(0.8, 3.0, count),
        "integers": rng.poisson(4.0, count).astype(float),
        "tenths": np.round(rng.normal(size=count), 1),
        "constant": np.full(count, 7.5),
    }[name]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("normal", Identity),
        ("heavy", Asinh),
        ("skewed", Power),
        ("integers", Grid),
        ("constant", Constant),
    ],
)
def test_the_type_of_a_column_is_inferred_and_inverts(name: str, kind: type[Column]) -> None:
    values = column_values(name)
    column = infer_column(values, categorical=False)
    assert isinstance(column, kind)
    np.testing.assert_allclose(np.asarray(column.decode(column.encode(values)), float), values, rtol=1e-7, atol=1e-20)
    incomplete = values.copy()
    incomplete[3] = np.nan
    assert np.isnan(column.encode(incomplete)).nonzero()[0].tolist() == [3]


def test_grids_have_room_where_values_thin_out() -> None:
    random = np.random.default_rng(0)
    normal, skewed = np.rint(50.0 + 10.0 * random.normal(size=300)), np.rint(random.exponential(20.0, 300))
    for values, below, above in ((normal, True, True), (skewed, False, True), (-skewed, True, False)):
        grid = infer_column(values, categorical=False)
        assert isinstance(grid, Grid)
        low, high = grid.decode(np.array([-1e6, 1e6])).astype(float)
        assert (low < values.min(), high > values.max()) == (below, above)


def test_multiples_of_a_whole_number_lie_on_a_grid_although_none_repeats() -> None:
    values = 100.0 * np.random.default_rng(0).permutation(4000)[:300] + 200_000.0
    grid = infer_column(values, categorical=False)
    assert isinstance(grid, Grid)
    assert grid.spacing == 100.0
    assert isinstance(infer_column(values + np.arange(300), categorical=False), Continuous)


def test_many_numbers_have_levels_if_each_has_rows_enough() -> None:
    values = np.random.default_rng(0).integers(0, 60, 1200).astype(float)
    count = len(np.unique(values))
    for rows, max_levels, levels in ((1200, 16, 0), (1200, 100, count), (1200, 59, 0), (1190, 100, 0)):
        assert len(infer_column(values[:rows], False, NumberRules(most=max_levels)).level_numbers) == levels


def test_rules_say_which_numbers_have_levels_and_whether_grids_are_mapped() -> None:
    random = np.random.default_rng(0)
    rules = NumberRules(few=2, most=2, map_grids=False)
    for values, levels in ((random.integers(0, 2, 300), 2), (random.integers(0, 6, 300), 0)):
        kind = infer_column(values.astype(float), False, rules)
        assert isinstance(kind, Grid)
        assert len(kind.level_numbers) == levels
    prices = np.round(np.exp(random.normal(5.0, 1.0, 2000)))
    assert isinstance(infer_column(prices, False), Power | Asinh)
    assert isinstance(infer_column(prices, False, rules), Grid)


def test_values_that_are_never_negative_stay_so() -> None:
    for values in (column_values("skewed"), column_values("bounded"), column_values("normal") - 5.0):
        kind = infer_column(values, categorical=False)
        assert isinstance(kind, Continuous)
        low = float(kind.decode(np.array([-1e6]))[0])
        if values.min() < 0.0:
            assert (kind.ends, low) == (None, pytest.approx(2.0 * values.min() - values.max()))
        else:
            assert 0.0 <= low <= values.min()
            assert kind.ends is not None
            assert kind.encode(np.array([low - 1e-3])) < kind.ends[0] < kind.encode(np.array([low]))
            assert not kind.allows(float(kind.encode(np.array([-0.1]))[0]), -0.1)


@pytest.mark.parametrize(
    "column",
    [
        Identity(1.0, 3.0, -9.0, 9.0),
        Asinh(1.0, 3.0, -9.0, 9.0),
        *(Power(1.0, 1.5, -9.0, 9.0, exponent) for exponent in (0.0, 0.3, 2.0)),
    ],
)
def test_continuous_maps_invert_and_have_the_slope_of_finite_differences(column: Column) -> None:
    values = np.linspace(-4.0, 6.0, 41)
    np.testing.assert_allclose(column.decode(column.encode(values)), values, rtol=1e-9, atol=1e-9)
    step = 1e-5
    slope = (column.encode(values + step) - column.encode(values - step)) / (2.0 * step)
    np.testing.assert_allclose(column.log_slope(column.encode(values)), np.log(slope), rtol=1e-5, atol=1e-5)
    far = column.decode(np.array([-1e3, 1e3, np.nan]))  # extreme samples of a model, and a missing value
    assert far[:2].tolist() == [-27.0, 27.0]
    assert np.isnan(far[2])


@pytest.mark.parametrize(
    ("values", "spacing", "levels"),
    [
        (column_values("tenths"), 0.1, None),
        (np.array([0.0, 6.0, 6.0, 12.0, 18.0, 0.0]), 6.0, 4),
        (np.float32(37.0) + np.float32(0.1) * np.array([0, 1, 1, 2, 3, 7], np.float32), 0.1, 8),
        (np.array([-2.63602, -1.63602, -0.63604, 0.36398, 1.36398, 0.36398]), 1.0, 5),
        (np.array([1e-9, 2e-9, 3e-9, 5e-9, 1e-9]), 1e-9, 5),
    ],
)
def test_grids_are_detected_and_invert(values: np.ndarray, spacing: float, levels: int | None) -> None:
    column = infer_column(values.astype(float), categorical=False)
    assert isinstance(column, Grid)
    assert column.spacing == pytest.approx(spacing, rel=1e-3)
    assert levels in (None, column.levels)
    np.testing.assert_allclose(column.decode(column.encode(values.astype(float))), values, rtol=1e-4, atol=1e-12)
    assert np.isnan(column.decode(np.array([np.nan, 1.0]))).tolist() == [True, False]


@pytest.mark.parametrize("low", [2**63, -(2**63) - 2**13])
def test_grids_beyond_the_range_of_integers_keep_their_values(low: int) -> None:
    values = np.array([float(low + 2**16 * place) for place in range(6)] * 9)
    grid = infer_column(values, categorical=False)
    assert isinstance(grid, Grid)
    assert grid.decode(grid.encode(values)).astype(float).tolist() == values.tolist()


def test_repeated_values_on_no_grid_are_continuous() -> None:
    assert isinstance(infer_column(np.array([0.0, 0.0, 1.0, math.pi, math.pi, 7.3]), False), Asinh | Power | Identity)


def test_unseen_categories_share_one_number() -> None:
    names = np.array(["b", "a", "a", None, "a", "b", "c"], dtype=object)
    column = infer_column(names, categorical=True)
    assert isinstance(column, Categories)
    assert column.names[0] == "a"
    np.testing.assert_array_equal(column.encode(np.array(["a", None, "new"], dtype=object)), [0.0, np.nan, 3.0])
    assert column.decode(np.array([0.2, 99.0, np.nan])).tolist() == ["a", column.names[2], None]
    assert column.log_unseen == -math.log(8.0)
    constant = infer_column(np.array([True, pd.NA, True], dtype=object), categorical=True)
    assert isinstance(constant, Constant)
    np.testing.assert_array_equal(constant.encode(np.array([True, pd.NA, False], dtype=object)), [0.0, np.nan, 1.0])
