"""Optimizers and schedulers of one's own: they train, resume exactly, and do not contradict the configuration."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import LBFGS, SGD, Adam, RMSprop
from torch.optim.lr_scheduler import (
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from arcsm import FitResult, fit
from small_runs import before_step, correlated_rows, have_same_weights, interrupt, short_config, small_density


def train(changes: dict[str, Any] | None = None, **options: Any) -> tuple[Any, FitResult]:
    model, config = small_density(), short_config(**{"steps": 12, "validate_every": 4, **(changes or {})})
    return model, fit(model, correlated_rows(), correlated_rows(90, seed=5), config, **options)


def rates(result: FitResult) -> list[float]:
    return [row["learning_rate"] for row in result.history]


def test_the_optimizer_of_the_configuration_by_hand_gives_the_same_weights() -> None:
    by_hand = train(optimizer=partial(Adam, lr=1e-3, fused=True))
    assert have_same_weights(by_hand[0], train()[0])


def test_the_schedule_scales_the_rates_of_an_optimizer_unless_there_is_a_scheduler() -> None:
    def two_rates(parameters: list[torch.nn.Parameter]) -> SGD:
        return SGD([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.5}], lr=0.25)

    seen = []
    fast = {"warmup_steps": 0}
    result = train(fast, optimizer=two_rates, callbacks=[lambda s: seen.append(s.optimizer.param_groups[1]["lr"])])[1]
    assert rates(result) == pytest.approx([0.125 * (1.0 + math.cos(math.pi * step / 12)) for step in (3, 7, 11)])
    assert seen[3::4] == pytest.approx([2.0 * rate for rate in rates(result)])
    plain = train(optimizer=partial(SGD, lr=0.1), scheduler=partial(MultiStepLR, milestones=[5, 9]))[1]
    assert rates(plain) == pytest.approx([0.1, 0.01, 0.001])


def test_a_scheduler_on_plateaus_follows_the_validations() -> None:
    scheduler = partial(ReduceLROnPlateau, patience=0, threshold=1e6, threshold_mode="abs")
    result = train({"learning_rate": 1e-2}, scheduler=scheduler)[1]
    assert rates(result) == pytest.approx([1e-2, 1e-2, 1e-3])  # the first validation is the best


def sequence(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return SequentialLR(optimizer, [LinearLR(optimizer), ExponentialLR(optimizer, 0.9)], [3])


SCHEDULERS: dict[str, Any] = {
    "none": None,
    "exponential": partial(ExponentialLR, gamma=0.9),
    "milestones": partial(MultiStepLR, milestones=[2, 6]),
    "one cycle": partial(OneCycleLR, max_lr=0.02, total_steps=20),
    "function": partial(LambdaLR, lr_lambda=lambda step: 0.9**step),
    "plateaus": partial(ReduceLROnPlateau, patience=0),
    "sequence": sequence,
}


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch's own, of SequentialLR
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", [None, partial(SGD, lr=0.01, momentum=0.9), partial(RMSprop, lr=1e-3)])
def test_a_resumed_run_continues_with_the_state_of_both(scheduler: str, optimizer: Any, tmp_path: Path) -> None:
    both = {"optimizer": optimizer, "scheduler": SCHEDULERS[scheduler]}
    whole, expected = train(**both)
    with before_step(7, interrupt), pytest.raises(KeyboardInterrupt):
        train({"checkpoint_seconds": 0}, run=tmp_path / "run", **both)
    resumed, result = train(run=tmp_path / "run", resume=True, **both)
    assert have_same_weights(whole, resumed)
    assert rates(result) == rates(expected)


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({"optimizer": partial(SGD, lr=0.1)}, {"optimizer": partial(RMSprop, lr=0.1)}, "SGD then, custom RMSprop now"),
        ({"optimizer": partial(SGD, lr=0.1)}, {}, r"optimizer \(custom SGD then, Adam now\); pass the same optimizer"),
        ({}, {"optimizer": partial(Adam, lr=0.1)}, "Adam then, custom Adam now"),
        (
            {"optimizer": partial(SGD, lr=0.1)},
            {"optimizer": partial(SGD, lr=0.1), "scheduler": partial(ExponentialLR, gamma=0.5)},
            "another scheduler .that of the configuration then, ExponentialLR now",
        ),
    ],
)
def test_another_kind_of_optimizer_or_scheduler_does_not_resume(
    before: dict[str, Any], now: dict[str, Any], message: str, tmp_path: Path
) -> None:
    train({"steps": 2}, run=tmp_path / "run", **before)
    with pytest.raises(ValueError, match=f"the run was trained with .*{message}"):
        train({"steps": 2}, run=tmp_path / "run", resume=True, **now)


@pytest.mark.parametrize(
    ("options", "changes", "error", "message"),
    [
        ({"optimizer": partial(SGD, lr=0.1)}, {"learning_rate": 0.1}, ValueError, "leave config.learning_rate out"),
        ({"optimizer": partial(SGD, lr=0.1)}, {"optimizer": "adamw"}, ValueError, "leave config.optimizer out"),
        ({"scheduler": SCHEDULERS["exponential"]}, {"warmup_steps": 5}, ValueError, "leave config.warmup_steps out"),
        ({"optimizer": LBFGS}, {}, ValueError, "optimizer: LBFGS evaluates the loss several times a step"),
        ({"optimizer": "adam"}, {}, TypeError, "optimizer: .* got 'adam'; give TrainConfig"),
        (
            {"optimizer": SGD([torch.zeros(1)], 0.1)},
            {},
            TypeError,
            "optimizer: .* got an instance of SGD; give partial",
        ),
        ({"scheduler": "cosine"}, {}, TypeError, "scheduler: .* got 'cosine'; give TrainConfig"),
        (
            {"scheduler": ExponentialLR(SGD([torch.zeros(1)], 0.1), 0.9)},
            {},
            TypeError,
            "an instance of ExponentialLR; give",
        ),
        ({"optimizer": lambda parameters: 3}, {}, TypeError, "optimizer: expected to return a torch.optim.Optimizer"),
        ({"scheduler": lambda optimizer: 3}, {}, TypeError, "scheduler: expected to return an LRScheduler"),
    ],
)
def test_contradictions_are_rejected(
    options: dict[str, Any], changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(changes, **options)


def test_defaults_beside_a_custom_optimizer_are_no_contradiction() -> None:
    train({"steps": 1, "learning_rate": 1e-3, "weight_decay": 0.0}, optimizer=partial(SGD, lr=0.1))
