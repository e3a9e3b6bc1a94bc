"""What held-out rows choose in the training of a table's model."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

from arcsm.estimators.table_training import _BRANCH_STEPS, _BRANCHES, _Choice, _climb
from arcsm.training import fit
from arcsm.training.callbacks import TrainingState
from small_runs import correlated_rows, have_same_weights, short_config, small_density


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


def test_the_best_length_counts_and_a_longer_training_that_is_worse_is_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [3.0, 2.0]  # densities of the branches after 15 % and 40 % of 40 steps
    pairs = enumerate(found, 3)
    densities, seen = list[float](), dict[int, Any]()
    annealed, candidate = _Choice._annealed, SimpleNamespace(model=small_density().double())

    def best_level(self: _Choice) -> tuple[int, float]:
        level, density = next(pairs)
        densities.append(density)
        return level, density

    def anneal(self: _Choice, state: TrainingState) -> Any:
        seen[state.step] = annealed(self, state)
        return seen[state.step]

    monkeypatch.setattr(_Choice, "_best_level", best_level)
    monkeypatch.setattr(_Choice, "_annealed", anneal)
    rows, config = correlated_rows(), short_config(steps=40)
    calibrated = list[Any]()
    choice = _Choice(candidate, config, rows, rows, _BRANCHES, calibrated.append, None)  # type: ignore[arg-type]
    result = fit(small_density(), rows, config=config, callbacks=[choice])
    assert calibrated == [candidate.model] * len(found)  # before each comparison
    assert (densities, list(seen), result.steps) == (found, [6, 16], 16)
    assert (choice.density, candidate.level) == (3.0, 3)
    kept = small_density().double()
    kept.load_state_dict(choice.weights)
    assert have_same_weights(kept, seen[6].double())


def test_a_branch_continues_the_training_at_its_rate_and_leaves_it_unchanged() -> None:
    plain, branched, rows = small_density(), small_density(), correlated_rows()
    config, seen = short_config(steps=40, warmup_steps=2), list[Any]()
    choice = _Choice(SimpleNamespace(), config, rows, rows, (), lambda _: None, None)  # type: ignore[arg-type]

    def branch(state: TrainingState) -> None:
        if state.step == 20:
            before = copy.deepcopy(state.model)
            seen.extend([before, choice._annealed(state), state.optimizer.param_groups[0]["lr"]])

    fit(plain, rows, config=config)
    fit(branched, rows, config=config, callbacks=[branch])
    assert have_same_weights(plain, branched)
    expected = copy.deepcopy(seen[0])
    steps = round(_BRANCH_STEPS * config.steps)
    by_hand = short_config(steps=steps, warmup_steps=2, learning_rate=seen[2], seed=config.seed + 20)
    assert steps == 2
    fit(expected, rows, config=by_hand)
    assert 0.0 < seen[2] < config.learning_rate
    assert have_same_weights(expected, seen[1])
