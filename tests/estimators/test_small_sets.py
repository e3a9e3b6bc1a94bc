"""What one or two known values tell: the network of small sets in models of tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from arcsm import AnyOrder
from arcsm.estimators import ScoreDensity


def table(columns: int, rows: int = 60) -> pd.DataFrame:
    x = np.random.default_rng(0).normal(size=(rows, columns))
    return pd.DataFrame(x, columns=[f"x{d}" for d in range(columns)])


def context_of(estimator: Any) -> AnyOrder:
    context = estimator.model_.model.context
    assert isinstance(context, AnyOrder)
    return context


@pytest.mark.parametrize(("columns", "small_sets"), [(2, 0), (5, 2)])
def test_small_sets_have_a_network_that_was_trained_further(columns: int, small_sets: int) -> None:
    context = context_of(ScoreDensity(max_steps=40, random_state=0).fit(table(columns)))
    assert context.small_sets == small_sets
    assert (context.networks.small is None) == (not small_sets)
    if context.networks.small is not None:
        weights = zip(context.networks.large.parameters(), context.networks.small.parameters(), strict=True)
        assert any(not torch.equal(first, second) for first, second in weights)
        assert all(parameter.requires_grad for parameter in context.parameters())


def employees(rows: int, seed: int) -> pd.DataFrame:
    """Draw employees, of whom those hired in the last two years leave much more often."""
    random = np.random.default_rng(seed)
    department = random.choice(["Sales", "IT", "Ops", "HR"], rows, p=[0.35, 0.3, 0.25, 0.1])
    age = np.clip(np.round(20.0 + 45.0 * random.beta(2.0, 2.5, rows)), 20.0, 65.0)
    years = np.maximum(0.0, age - 20.0) * random.beta(1.0, 2.0, rows)
    grade = np.clip(1 + (years / 5.0 + random.normal(0.0, 0.7, rows)).astype(int) + (department == "IT"), 1, 6)
    full = np.round(280.0 * 1.18**grade * np.exp(random.normal(0.0, 0.08, rows))) * 100.0
    share = random.choice([100.0, 80.0, 60.0, 50.0], rows, p=[0.75, 0.12, 0.05, 0.08])
    sick = random.poisson(np.exp(1.0 + 0.4 * (department == "Ops") + 0.5 * (share < 100.0)))
    bonus = np.where(department == "Sales", np.round(random.gamma(2.0, 5.0, rows), 1), 0.0)
    left = random.random(rows) < 1.0 / (1.0 + np.exp(2.2 - 1.2 * (years < 2.0) - 0.1 * sick + 0.05 * bonus))
    hired = pd.Timestamp("2025-12-31") - pd.to_timedelta((365.25 * years).astype(int), "D")
    return pd.DataFrame(
        {
            "department": department, "age": age, "hired": hired, "grade": grade, "share": share,
            "salary": np.round(full * share / 100.0), "bonus": bonus, "sick": sick, "left": left,
        }
    )  # fmt: skip


@pytest.mark.slow
def test_a_rate_that_jumps_with_a_date_is_learned() -> None:
    density = ScoreDensity(random_state=0).fit(employees(2_000, 0))
    event, given, truth = {"left": True}, {"hired": ("2024-01-01", None)}, employees(200_000, 1)
    expected = float(truth["left"][truth["hired"] >= "2024-01-01"].mean())
    found = density.probability(event, given=given).value
    context_of(density).networks.small = None
    without = density.probability(event, given=given).value
    assert abs(found - expected) < 0.5 * abs(without - expected)
    assert abs(found - expected) < 0.04
