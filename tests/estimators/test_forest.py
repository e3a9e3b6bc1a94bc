"""Forests: predictions of scikit-learn's trees, gaps, names, and files that no forest was written to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesRegressor

from arcsm.estimators.column_types import Array
from arcsm.estimators.encoder import Columns
from arcsm.estimators.forest import Forest
from small_tables import mixed_table


def rows(count: int = 300) -> tuple[Array, Array]:
    random = np.random.default_rng(0)
    x = random.normal(size=(count, 3))
    return x, np.stack([x[:, 0] * x[:, 1], np.abs(x[:, 2])], 1) + 0.1 * random.normal(size=(count, 2))


@pytest.mark.parametrize("targets", [1, 2])
def test_predictions_are_those_of_scikit_learn(targets: int) -> None:
    x, y = rows()
    y = y[:, :targets]
    forest = Forest.grow(Columns.infer(x).kinds, x, y, seed=3, most_trees=50)
    peer = ExtraTreesRegressor(50, max_features=0.5, bootstrap=True, random_state=3)
    new = np.random.default_rng(1).normal(size=(500, 3))
    expected = peer.fit(x, y[:, 0] if targets == 1 else y).predict(new).reshape(-1, targets)
    np.testing.assert_allclose(forest.predict(new), expected, rtol=1e-5, atol=1e-6)
    assert forest.predict(new[:0]).shape == (0, targets)


def test_large_tables_have_small_trees() -> None:
    x, y = rows(12_000)
    forest = Forest.grow(Columns.infer(x).kinds, x, y, seed=0)
    assert len(forest.roots) == 100
    assert len(forest.values) < 100 * 5_000


def test_gaps_and_names_are_features() -> None:
    table = mixed_table(400)
    table["height"] = table["height"].mask(np.arange(400) % 5 == 0)
    columns = Columns.infer(table)
    x = columns.encode(table)
    names = [list(table).index(name) for name in ("city", "kind") if name in table]
    y = np.isnan(x[:, [0]]) + 2.0 * (x[:, [names[0]]] == 1.0)
    forest = Forest.grow(columns.kinds, x, y, seed=0)
    assert forest.levels[names[0]] == 3
    np.testing.assert_allclose(forest.predict(x), y, atol=0.35)


def changed(values: Array, place: int, value: int) -> Array:
    found = values.copy()
    found[place] = value
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"children": lambda forest: changed(forest.children, 0, 0)},  # a loop
        {"children": lambda forest: changed(forest.children, 0, len(forest.features))},
        {"children": lambda forest: forest.children[:-1]},
        {"features": lambda forest: changed(forest.features, 0, 3)},
        {"features": lambda forest: changed(forest.features, -1, 0)},  # the last node has no left child
        {"roots": lambda forest: changed(forest.roots, 0, len(forest.features))},
        {"roots": lambda forest: forest.roots.astype(np.int8)},  # sums would wrap around
        {"values": lambda forest: forest.values[:, 0]},
        {"thresholds": lambda forest: forest.thresholds.astype(str)},
        {"lowest": lambda forest: forest.lowest[:1]},
        {"levels": lambda forest: (10**10, 0, 0)},
    ],
)
def test_other_arrays_are_no_forest(changes: dict[str, Any]) -> None:
    x, y = rows(50)
    forest = Forest.grow(Columns.infer(x).kinds, x, y, seed=0, most_trees=3)
    forest.check_read()
    with pytest.raises(ValueError, match="expected trees whose nodes lead to leaves"):
        replace(forest, **{name: change(forest) for name, change in changes.items()}).check_read()


def test_trees_that_are_too_deep_are_no_forest() -> None:
    x, y = rows(50)
    forest = Forest.grow(Columns.infer(x).kinds, x, y, seed=0, most_trees=3)
    nodes = 200
    leaf = np.arange(nodes) == nodes - 1
    chain = replace(
        forest, roots=forest.roots[:1], features=np.where(leaf, -1, 0).astype(np.int32),
        thresholds=np.zeros(nodes, np.float32), children=np.where(leaf, 0, nodes - 1).astype(np.int32),
    )  # fmt: skip
    with pytest.raises(ValueError, match="expected trees"):
        chain.check_read()


def test_a_gap_that_trees_have_not_seen_leaves_no_prediction() -> None:
    x, y = rows()
    x[::4, 0] = np.nan
    forest = Forest.grow(Columns.infer(x).kinds, x, y, seed=0)
    new = np.array([[np.nan, 0.0, 0.0], [0.0, np.nan, 0.0], [0.0, 0.0, 0.0]])
    assert np.isnan(forest.predict(new)).tolist() == [[False, False], [True, True], [False, False]]
    x[:, 1] = 1.0  # which tells nothing
    assert np.isfinite(Forest.grow(Columns.infer(x[:, [0, 2]]).kinds[:1] * 3, x, y, seed=0).predict(new)).all()
