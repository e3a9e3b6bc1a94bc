"""The learning rate of score networks, relative to that of contexts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from arcsm import AnyOrder, AutoregressiveModel, CategoricalHead, GaussianHead, MixedHead, ScoreHead, fit
from arcsm.training import TrainConfig
from arcsm.training.callbacks import TrainingState
from arcsm.training.optimization import build_optimizer
from small_runs import correlated_rows, have_same_weights, short_config, small_density


def mixed() -> AutoregressiveModel:
    context = AnyOrder(2, 4, (8, 8), 6, levels=(0, 3))
    return AutoregressiveModel(context, MixedHead([ScoreHead(4, (8,)), CategoricalHead(4, 3)], (0, 1)))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_weights_of_score_networks_alone_have_the_factor(optimizer: Any) -> None:
    model = mixed()
    found = build_optimizer(model, TrainConfig(optimizer=optimizer, learning_rate=1e-3, score_rate_factor=4.0))
    rates = {id(weight): group["lr"] for group in found.param_groups for weight in group["params"]}
    of_scores = {id(weight) for weight in model.head.parts(2)[0][0].parameters()}
    assert of_scores
    for weight in model.parameters():
        assert rates[id(weight)] == pytest.approx(4e-3 if id(weight) in of_scores else 1e-3)


def test_heads_with_a_closed_form_have_none() -> None:
    model = AutoregressiveModel(AnyOrder(2, 4, (8, 8), 6), GaussianHead(4))
    found = build_optimizer(model, TrainConfig(learning_rate=1e-3, score_rate_factor=4.0))
    assert [group["lr"] for group in found.param_groups if group["params"]] == [1e-3]


def test_the_schedule_keeps_the_factor() -> None:
    rates = list[list[float]]()

    class Recorder:
        def on_step(self, state: TrainingState) -> None:
            rates.append([group["lr"] for group in state.optimizer.param_groups])

    settings = short_config(steps=20, warmup_steps=5, score_rate_factor=4.0)
    fit(small_density(), correlated_rows(100), config=settings, callbacks=[Recorder()])
    assert len({first for first, _ in rates}) > 10
    for first, second in rates:
        assert second == pytest.approx(4.0 * first)


def test_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    class Interrupted:
        def on_step(self, state: TrainingState) -> None:
            if state.step == 7:
                raise KeyboardInterrupt

    x, settings = correlated_rows(100), short_config(steps=15, score_rate_factor=4.0, checkpoint_seconds=0.0)
    torch.manual_seed(0)
    whole = small_density()
    parts = small_density()
    parts.load_state_dict(whole.state_dict())
    fit(whole, x, config=settings)
    with pytest.raises(KeyboardInterrupt):
        fit(parts, x, config=settings, run=tmp_path, callbacks=[Interrupted()])
    fit(parts, x, config=settings, run=tmp_path, resume=True)
    assert have_same_weights(whole, parts)
