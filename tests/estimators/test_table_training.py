"""What held-out rows choose in the training of a table's model."""

from __future__ import annotations

import pytest

from arcsm.estimators.table_training import _climb


@pytest.mark.parametrize(
    ("densities", "start", "tolerance", "best", "evaluated"),
    [
        ([1.0, 3.0, 2.0, 1.0, 0.0], 4, 0.0, 1, {4, 3, 2, 1, 0}),
        ([1.0, 3.0, 2.0, 1.0, 0.0], 0, 0.0, 1, {0, 1, 2}),
        ([5.0, 0.0, 2.0, 1.0, 0.0], 3, 0.0, 2, {3, 2, 1, 4}),  # a valley hides the best
        ([5.0, 1.5, 2.0, 1.0, 0.0], 3, 1.0, 0, {3, 2, 1, 0, 4}),  # but not one within the tolerance
        ([7.0], 0, 0.0, 0, {0}),
    ],
)
def test_steps_lead_to_the_best_level_within_reach(
    densities: list[float], start: int, tolerance: float, best: int, evaluated: set[int]
) -> None:
    seen = set()

    def density(level: int) -> float:
        assert level not in seen  # each level is evaluated once
        seen.add(level)
        return densities[level]

    assert _climb(density, start, range(len(densities)), tolerance) == (best, densities[best])
    assert seen == evaluated
