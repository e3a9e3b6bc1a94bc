"""Tables whose gaps depend on values: what is known of some rows only does not tell who all rows are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from arcsm.estimators import ScoreDensity
from arcsm.estimators.gaps import gap_dependence


def table_of_two_groups(rows: int = 700) -> pd.DataFrame:
    """Return a table in which a group, 52 % of the rows, has no values in most columns."""
    random = np.random.default_rng(7)
    group = random.random(rows) < 0.52
    table = pd.DataFrame({"sex": np.where(group, "m", "f"), "age": random.normal(50.0 + 4.0 * group, 10.0).round(1)})
    for j in range(5):
        table[f"x{j}"] = np.where(group, np.nan, random.normal(0.5 * j, size=rows))
    return table


def test_groups_without_columns_keep_their_share() -> None:
    table = table_of_two_groups()
    share, old = (table["sex"] == "m").mean(), table["age"] > 55.0
    density = ScoreDensity(max_steps=500, random_state=0).fit(table)
    assert all(set(order[:2]) == {0, 1} for order in density.orders_)
    assert density.probability({"sex": "m"}).value == pytest.approx(share, abs=0.05)  # 0.7 to 0.8 by rows alone
    of_old = density.probability({"sex": "m"}, given={"age": (55.0, 100.0)}).value
    assert of_old == pytest.approx((table["sex"] == "m")[old].mean(), abs=0.1)
    assert (density.sample(4000)["sex"] == "m").mean() == pytest.approx(share, abs=0.1)  # 0.4 in arbitrary orders
    drawn = density.conditional({"age": 50.0}, draws=2000)
    near = (table["sex"] == "m")[(table["age"] - 50.0).abs() < 3.0].mean()
    assert (drawn["sex"] == "m").mean() == pytest.approx(near, abs=0.1)


def test_events_of_columns_with_gaps_are_about_all_rows() -> None:
    random = np.random.default_rng(0)
    a = random.normal(size=800)
    b = 0.8 * a + 0.6 * random.normal(size=800)
    truth = (b > 0.5).mean()
    table = pd.DataFrame({"a": a, "b": np.where((a > 0.0) & (random.random(800) < 0.8), np.nan, b)})
    density = ScoreDensity(max_steps=500, random_state=0).fit(table)
    found = density.probability({"b": (0.5, None)})
    assert found.value == pytest.approx(truth, abs=0.06)  # 0.16 among the rows that have it
    assert (density.sample(4000)["b"] > 0.5).mean() == pytest.approx(found.value, abs=0.04)
    both = density.probability({"a": (0.5, None), "b": (0.5, None)})
    assert both.value < found.value
    drawn = density.conditional({"b": (0.5, None)}, draws=2000)
    assert drawn["a"].mean() == pytest.approx(a[b > 0.5].mean(), abs=0.2)  # 0.5 among the rows that have b
    of_value = density.probability({"b": (0.5, None)}, given={"a": 1.0})
    assert of_value.standard_error == 0.0
    assert of_value.value == pytest.approx(0.69, abs=0.1)


def test_dependence_is_seen_only_where_gaps_depend_on_values() -> None:
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.normal(size=(2000, 6)))
    assert gap_dependence(x) == ([], 0.0)
    at_random = x.masked_fill(torch.from_numpy(random.random(x.shape) < 0.3), torch.nan)
    assert gap_dependence(at_random) == ([], 0.0)
    by_first = x.clone()
    by_first[:, 2:][x[:, 0] > 0.0] = torch.nan
    by_first[:3, 1] = torch.nan
    columns, share = gap_dependence(by_first)
    assert columns == [2, 3, 4, 5]
    assert share > 0.9
    weak = x.clone()
    weak[:, 5][(x[:, 0] > 0.0) & torch.from_numpy(random.random(2000) < 0.2)] = torch.nan
    columns, share = gap_dependence(weak)
    assert columns == [5]
    assert 0.02 < share < 0.2


def test_dependence_of_tiny_tables_is_defined() -> None:
    for x in (torch.full((2, 1), torch.nan), torch.tensor([[1.0, torch.nan]]), torch.zeros(3, 2), torch.zeros(0, 3)):
        assert gap_dependence(x) == ([], 0.0)
