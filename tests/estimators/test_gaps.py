"""Tables whose gaps depend on values: what is known of some rows only does not tell who all rows are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from arcsm.estimators import ScoreDensity
from arcsm.estimators.gaps import gap_dependence
from small_tables import quick_density


def table_of_two_groups(rows: int = 700) -> pd.DataFrame:
    """Return a table in which a group, 52 % of the rows, has no values in most columns."""
    random = np.random.default_rng(7)
    group = random.random(rows) < 0.52
    table = pd.DataFrame({"sex": np.where(group, "m", "f"), "age": random.normal(50.0 + 4.0 * group, 10.0).round(1)})
    for j in range(5):
        table[f"x{j}"] = np.where(group, np.nan, random.normal(0.5 * j, size=rows))
    return table


def test_orders_begin_with_the_columns_that_all_rows_have() -> None:
    density = quick_density(table_of_two_groups())
    assert all(set(order[:2]) == {0, 1} for order in density.orders_)
    for given in (None, {"age": (55.0, 100.0)}):
        found = [density.probability({"sex": sex}, given, random_state=0).value for sex in "mf"]
        assert sum(found) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.slow
def test_groups_without_columns_keep_their_share() -> None:
    table = table_of_two_groups()
    share, old = (table["sex"] == "m").mean(), table["age"] > 55.0
    density = ScoreDensity(max_steps=500, random_state=0).fit(table)
    assert density.probability({"sex": "m"}).value == pytest.approx(share, abs=0.05)  # 0.7 to 0.8 by rows alone
    of_old = density.probability({"sex": "m"}, given={"age": (55.0, 100.0)}).value
    assert of_old == pytest.approx((table["sex"] == "m")[old].mean(), abs=0.1)
    assert (density.sample(4000)["sex"] == "m").mean() == pytest.approx(share, abs=0.1)  # 0.4 in arbitrary orders


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
