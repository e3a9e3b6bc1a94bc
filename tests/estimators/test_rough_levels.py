"""Numbers whose single levels matter are told from those with a smooth dependence."""

import numpy as np
import pandas as pd
import pytest
import torch

from arcsm.estimators import ScoreDensity
from arcsm.estimators.rough_levels import rough_levels
from small_targets import ROUGH, use_one_model

LEVELS, ROWS = 40, 4000


def codes(effect: np.ndarray, seed: int) -> torch.Tensor:
    """Return levels and a number that depends on them by an effect of each."""
    random = np.random.default_rng(seed)
    level = random.integers(LEVELS, size=ROWS)
    return torch.from_numpy(np.stack([level, effect[level] + random.normal(size=ROWS)], 1))


def test_an_effect_of_each_level_is_rough_and_a_smooth_one_is_not() -> None:
    place = np.arange(LEVELS) / LEVELS
    rough = np.random.default_rng(0).normal(size=LEVELS)
    for seed in range(2):
        assert rough_levels(codes(rough, seed), [LEVELS, 0], [0]) == [0]
        for smooth in (np.zeros(LEVELS), 3.0 * place, np.sin(6.0 * place)):
            assert rough_levels(codes(smooth, seed), [LEVELS, 0], [0]) == []


def test_names_that_depend_on_single_levels_count() -> None:
    random = np.random.default_rng(0)
    level = random.integers(LEVELS, size=ROWS)
    name = np.where(random.random(ROWS) < 0.8, (level * 7919) % 3, random.integers(3, size=ROWS))
    rows = torch.from_numpy(np.stack([level, name], 1).astype(float))
    rows[::9, 0] = torch.nan
    rows[::11, 1] = torch.nan
    assert rough_levels(rows, [LEVELS, 3], [0]) == [0]
    shuffled = torch.stack([rows[:, 0], rows[torch.randperm(ROWS), 1]], 1)
    assert rough_levels(shuffled, [LEVELS, 3], [0]) == []


@pytest.mark.parametrize("rough", [False, True])
def test_columns_with_rough_levels_are_learned_as_names(rough: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_model(monkeypatch, **ROUGH)
    effect = 3.0 * np.random.default_rng(0).normal(size=LEVELS) if rough else np.arange(LEVELS) / 10.0
    rows = pd.DataFrame(codes(effect, 0).numpy(), columns=["code", "value"])
    density = ScoreDensity(max_steps=5, random_state=0).fit(rows)
    assert density.model_ is not None
    assert density.model_.columns.rough == (frozenset({0}) if rough else frozenset())
    assert density.model_.columns.ordered == [not rough, False]
    assert density.model_.columns.ranked == [0]  # a linear predictor sees the number in either case
    assert density.model_.model.context.ranked == (0,)
    assert set(density.sample(50, 0)["code"]) <= set(map(float, range(LEVELS)))
