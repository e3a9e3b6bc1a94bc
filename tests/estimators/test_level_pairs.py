"""Pairs of levels that occur together."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from arcsm.estimators import level_pairs
from arcsm.estimators.encoder import Columns
from arcsm.estimators.level_pairs import LevelPairs


def pairs_and_rows(count: int = 60) -> tuple[LevelPairs, pd.DataFrame, Columns]:
    random = np.random.default_rng(0)
    table = pd.DataFrame({
        "city": random.choice(["a", "b", "c"], count, p=[0.8, 0.1, 0.1]),
        "visits": random.poisson(1.0, count),
        "size": random.normal(size=count),
        "yes": random.random(count) < 0.1,
        "wide": random.integers(0, 40, count),
        "same": 1,
    })  # fmt: skip
    table.loc[random.random(count) < 0.2, "city"] = None
    columns = Columns.infer(table)
    return LevelPairs.of_rows(columns, columns.encode(table)), table, columns


def test_pairs_are_those_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(level_pairs, "_ROWS_AT_A_TIME", 7)
    pairs, table, columns = pairs_and_rows()
    assert pairs.columns == (0, 1, 3)
    assert not pairs.has_unseen_pair(columns.encode(table)).any()
    new = pairs_and_rows(200)[1]
    known = {pair: set(zip(table[pair[0]], table[pair[1]], strict=True)) for pair in combinations(table, 2)}
    few = list(combinations(["city", "visits", "yes"], 2))
    expected = [
        any(not pd.isna(row[a]) and (row[a], row[b]) not in known[a, b] for a, b in few)
        for row in new.to_dict("records")
    ]
    assert pairs.has_unseen_pair(columns.encode(new)).tolist() == expected
    assert 5 < sum(expected) < 150


def test_a_single_level_is_no_pair() -> None:
    pairs, table, columns = pairs_and_rows()
    row = table.head(1).astype({"city": object, "visits": object, "yes": object}).assign(visits=np.nan, yes=None)
    assert not pairs.has_unseen_pair(columns.encode(row.assign(city="elsewhere"))).any()
    assert pairs.has_unseen_pair(columns.encode(row.assign(city="elsewhere", visits=1))).all()
    assert pairs.has_unseen_pair(columns.encode(row.assign(city="a", visits=-3))).all()


def test_values_between_those_of_an_uneven_grid_never_occur() -> None:
    table = pd.DataFrame({"city": ["a", "b"] * 30, "places": [1_000, 25_000, 250_000] * 20})
    columns = Columns.infer(table)
    pairs = LevelPairs.of_rows(columns, columns.encode(table))
    assert pairs.columns == (0, 1)
    rows = pd.DataFrame({"city": ["a", "a", "b"], "places": [25_000, 28_000, 247_000]})
    assert pairs.has_unseen_pair(columns.encode(rows)).tolist() == [False, True, True]
