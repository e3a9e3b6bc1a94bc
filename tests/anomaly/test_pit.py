"""Statistics of PIT values."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from arcsm.anomaly import anderson_darling, kolmogorov_smirnov, pit_statistics


def test_distances_from_the_uniform_match_their_definitions() -> None:
    u = torch.rand(4, 50, dtype=torch.float64)
    expected = [stats.kstest(row.numpy(), "uniform").statistic for row in u]
    assert kolmogorov_smirnov(u).tolist() == pytest.approx(expected)
    for row, found in zip(u, anderson_darling(u), strict=True):
        # n times the integral of (F_n - u)^2 / (u (1 - u))
        grid = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
        empirical = torch.searchsorted(row.sort().values, grid) / len(row)
        integral = float(((empirical - grid).square() / (grid * (1.0 - grid))).mean())
        assert float(found) == pytest.approx(len(row) * integral, rel=1e-3)


def test_statistics_of_rounded_values_are_finite() -> None:
    u = torch.tensor([[0.0, 1.0, 0.5], [1.0, 1.0, 1.0]])
    for name, column in pit_statistics(u).items():
        assert bool(column.isfinite().all()), name
    assert "lag 1" not in pit_statistics(torch.rand(3, 1))
