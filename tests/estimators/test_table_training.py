"""What held-out rows choose in the training of a table's model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from arcsm.contexts.linear_base import LinearBase
from arcsm.contexts.linear_features import LinearFeatures
from arcsm.estimators import ScoreClassifier, ScoreDensity, ScoreRegressor
from arcsm.estimators.column_inference import fit_continuous
from arcsm.estimators.model_columns import ModelColumns
from arcsm.estimators.table_config import TableConfig
from arcsm.estimators.table_training import _BRANCH_STEPS, _BRANCHES, _SNAPSHOTS_OF_TARGETS, _Choice, _climb
from arcsm.training import TrainConfig, fit
from arcsm.training.callbacks import TrainingState
from arcsm.training.data import set_moments
from small_runs import correlated_rows, have_same_weights, short_config, small_density


@pytest.mark.parametrize(
    ("rows", "steps", "rate"),
    [
        (500, 1_500, 5e-3),
        (500, 1_000, 7.5e-3),
        (500, 20, 1e-2),
        (500, 9_000, 5e-3),
        (5_000, 20, 1e-2),
    ],
)
def test_a_shortened_training_learns_faster_up_to_the_rate_of_densities(rows: int, steps: int, rate: float) -> None:
    config = TableConfig.for_table(rows, 5).for_targets(rows, nominal=False)
    assert replace(config, max_steps=steps).with_rate_of(config).learning_rate == pytest.approx(rate)


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


@pytest.mark.parametrize(
    ("targets", "found", "last", "branches"),
    [(None, [3.0, 2.0], 16, [6, 16]), ([1], [1.0, 3.0, 2.0], 8, [])],
)  # of 40 steps; with targets, more lengths are compared, without branches
def test_the_best_length_counts_and_a_longer_training_that_is_worse_is_the_last(
    targets: list[int] | None, found: list[float], last: int, branches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
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
    lengths, calibrated = _BRANCHES if targets is None else _SNAPSHOTS_OF_TARGETS, list[Any]()
    choice = _Choice(candidate, config, rows, rows, lengths, calibrated.append, targets)  # type: ignore[arg-type]
    averages = dict[int, Any]()
    result = fit(
        small_density(), rows, config=config,
        callbacks=[lambda state: averages.update({state.step: copy.deepcopy(state.averaged_model)}), choice],
    )  # fmt: skip
    assert calibrated == [candidate.model] * len(found)  # before each comparison
    assert (densities, list(seen), result.steps) == (found, branches, last)
    assert (choice.density, candidate.level) == (3.0, 3 if targets is None else 4)
    kept = small_density().double()
    kept.load_state_dict(choice.weights)
    assert have_same_weights(kept, (seen[6] if targets is None else averages[4]).double())


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


def test_correlations_are_those_of_distinct_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose numbers have ends are trained in several copies, with some reflected; these are no evidence."""
    seen = list[int]()

    def counting(fitted: Callable[..., None]) -> Callable[..., None]:
        def fit_and_count(part: Any, z: torch.Tensor) -> None:
            seen.append(len(z))
            fitted(part, z)

        return fit_and_count

    for part in (LinearBase, LinearFeatures):
        monkeypatch.setattr(part, "fit", counting(part.fit))
    z = np.random.default_rng(0).uniform(size=(200, 3))
    z[:, 2] = z[:, 0] + 1e-2 * z[:, 1]  # on a line, so that there is a base, too
    density = ScoreDensity(max_steps=40, random_state=0).fit(z)
    context = density.model_.model.context
    assert density.model_.columns.ends
    assert context.base.is_fitted
    assert context.linear.has_correlations
    assert max(seen) < 200
    assert seen == [max(seen)] * 3  # the search for lines, then one of each


def test_densities_and_regressors_are_learned_by_muon_and_classifiers_and_detectors_are_not() -> None:
    for rows in (100, 700, 1_500, 3_000, 30_000):
        density = TableConfig.for_table(rows, 5)
        others = [density.for_targets(rows, nominal) for nominal in (False, True)]
        others.append(TableConfig.for_table(rows, 5, smooth=True))
        kinds = [
            one.train_config([0.0] * 5, 0, "cpu").optimizer for one in (density, density.high_resolution(), *others)
        ]
        assert kinds == ["muon"] * 3 + ["adamw"] * 2


def test_a_regressor_has_its_settings_when_the_steps_are_given() -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    expected = TableConfig.for_table(60, 3).for_targets(60, nominal=False)
    found = ScoreRegressor(max_steps=3, n_estimators=1, random_state=0).fit(x[:, :2], x[:, 2])._joint.config_
    assert (found.max_steps, found.optimizer, found.dropout) == (3, "muon", expected.dropout)
    assert found.learning_rate >= expected.learning_rate
    names = (
        ScoreClassifier(max_steps=3, n_estimators=1, random_state=0).fit(x, np.repeat(["a", "b"], 30))._joint.config_
    )
    assert names.weight_decay == TableConfig.for_table(60, 3).for_targets(60, nominal=True).weight_decay


def test_moments_are_kept_although_no_dimension_is_on_a_line() -> None:
    columns = ModelColumns.of_columns([fit_continuous(np.arange(9.0))] * 2)
    model = TableConfig.for_table(100, 2).build_model(columns, located=True)
    base, linear = model.context.base, model.context.linear
    assert not base.is_fitted
    assert not linear.is_fitted
    z = torch.randn(50, 2)
    set_moments(model, z, None, TrainConfig())
    before = base.mean.clone(), linear.mean.clone()
    assert base.is_fitted
    assert linear.is_fitted
    assert not base.index
    set_moments(model, 3.0 + z, None, TrainConfig(standardise="none"))
    assert torch.equal(base.mean, before[0])
    assert torch.equal(linear.mean, before[1])


@pytest.mark.parametrize(("rows", "gaps", "sees"), [(300, 0.0, True), (2600, 0.0, False), (2600, 0.3, True)])
def test_contexts_see_linear_predictors_if_rows_are_few_or_have_gaps(rows: int, gaps: float, sees: bool) -> None:
    x = correlated_rows(rows)
    x[np.random.default_rng(1).random(x.shape) < gaps] = np.nan
    density = ScoreDensity(max_steps=2, n_estimators=1, random_state=0).fit(x)
    assert density.model_ is not None
    assert density.model_.model.context.linear_features == sees
