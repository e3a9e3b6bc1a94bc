"""Measures of synthetic rows: what they say of real rows, of copies and of columns without their relations."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from arcsm.experiments.synthetic_rows import measure
from arcsm.experiments.tables import Table

NAMES = ((), (), ("a", "b", "c"))


def rows(count: int, seed: int) -> NDArray[np.float64]:
    """Return a number, one near its square, and a name that depends on the first."""
    random = np.random.default_rng(seed)
    x = random.normal(size=count)
    name = np.digitize(x + 0.3 * random.normal(size=count), [-0.5, 0.5])
    return np.column_stack([x, x**2 + 0.1 * random.normal(size=count), name]).astype(float)


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, float | None]]:
    """Return the measures of other real rows, of the training rows, and of independent columns."""
    train, held_out = rows(600, 0), rows(600, 1)
    table, random = Table(train, NAMES), np.random.default_rng(2)
    synthetic = {
        "real": rows(600, 3),
        "copies": train,
        "independent": np.stack([random.permutation(column) for column in train.T], 1),
    }
    return {name: measure(table, train, held_out, drawn, seed=0) for name, drawn in synthetic.items()}


def test_other_real_rows_are_as_good_as_rows_can_be(found: dict[str, dict[str, float]]) -> None:
    of_real = found["real"]
    assert of_real["c2st"] == pytest.approx(0.5, abs=0.06)
    assert of_real["marginals"] < 0.08
    assert of_real["pairs"] < 0.08
    assert of_real["utility"] > 0.9
    assert of_real["precision"] > 0.9
    assert of_real["recall"] == pytest.approx(0.5, abs=0.12)
    assert of_real["nearest"] == pytest.approx(0.5, abs=0.08)
    assert of_real["membership"] == pytest.approx(0.5, abs=0.08)


def test_copies_are_recognised(found: dict[str, dict[str, float]]) -> None:
    assert found["copies"]["nearest"] > 0.99
    assert found["copies"]["membership"] > 0.99


def test_lost_relations_are_seen(found: dict[str, dict[str, float]]) -> None:
    independent = found["independent"]
    assert independent["marginals"] < 0.08
    assert independent["c2st"] > 0.85
    assert independent["pairs"] > 0.2
    assert independent["utility"] < 0.2
