"""Probabilities of sets of intervals, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from arcsm import AnyOrder, AutoregressiveModel, GaussianHead
from arcsm.conditionals import Conditionals
from arcsm.queries import Intervals, constraints

_ROWS = 5


@pytest.mark.parametrize("at_a_time", [1, 7, 20_000])
@pytest.mark.parametrize(
    ("bounds", "finite"),
    [
        ([(-math.inf, -1.0), (-1.0, 0.0), (0.5, math.inf)], 3),
        ([(-math.inf, math.inf)], 0),
        ([(0.01 * k, 0.01 * k + 0.005) for k in range(40)], 80),
    ],
)
@pytest.mark.parametrize("same", [True, False])  # conditionals of all rows
def test_each_end_of_several_intervals_is_evaluated_once_and_all_of_them_together(
    bounds: Sequence[tuple[float, float]], finite: int, same: bool, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(AnyOrder(1, 4, (8,), condition_features=1), GaussianHead(4)).double()
    condition, seen = torch.arange(float(_ROWS)).unsqueeze(-1).double() * (not same), list[Conditionals]()
    model.evaluate(lambda c, values, _: seen.append(c) or values, torch.zeros(_ROWS, 1).double(), condition=condition)
    (conditionals,), cdf, evaluated = seen, Conditionals.cdf, list[int]()

    def at(number: float) -> torch.Tensor:
        limit = torch.full((_ROWS,), float(number > 0.0), dtype=torch.float64)
        return limit if math.isinf(number) else conditionals.cdf(torch.full((_ROWS,), number, dtype=torch.float64))

    by_hand = torch.stack([at(high) - at(low) for low, high in bounds]).sum(0).log()

    def count(self: Conditionals, x: torch.Tensor) -> torch.Tensor:
        evaluated.append(len(x))
        return cdf(self, x)

    monkeypatch.setattr(Conditionals, "cdf", count)
    monkeypatch.setattr(constraints, "_CONDITIONALS_AT_A_TIME", at_a_time)
    u = torch.linspace(0.1, 0.9, _ROWS, dtype=torch.float64)
    found, log_probability = Intervals(bounds).draw(conditionals, u, 0.0, 1.0)
    torch.testing.assert_close(log_probability, by_hand, rtol=0.0, atol=1e-12)
    assert all(any(low <= value <= high for low, high in bounds) for value in found.tolist())
    assert sum(evaluated) == finite * (1 if same else _ROWS)
    assert max(evaluated, default=0) <= max(at_a_time, 1 if same else _ROWS)
