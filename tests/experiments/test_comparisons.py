"""Paired comparisons over rows and seeds."""

from __future__ import annotations

import pytest

from arcsm.experiments.comparisons import compare_with_best


def test_methods_are_compared_on_the_seeds_that_both_have() -> None:
    best, differences, by_seed = compare_with_best(
        {
            "best": {0: (1.0, 3.0), 1: (2.0, 2.0), 2: (0.0, 1.0)},
            "without its second seed": {0: (2.0, 4.0), 2: (3.0, 5.0)},
            "first seed alone": {0: (5.0, 5.0)},
        }
    )
    assert best == "best"
    assert differences["best"] == [0.0, 0.0]
    assert by_seed["without its second seed"] == pytest.approx([1.0, 3.5])
    assert differences["without its second seed"] == pytest.approx(
        [
            2.25,
            (0.25**2 + 1.25**2) ** 0.5,
        ]  # rows differ by 0.5 after averaging seeds, seeds by 2.5 after averaging rows
    )
    assert by_seed["first seed alone"] == pytest.approx([3.0])
    assert differences["first seed alone"] == pytest.approx([3.0, 1.0])
