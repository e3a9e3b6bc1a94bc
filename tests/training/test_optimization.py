"""Optimizers: one's own train, resume exactly and do not contradict the configuration, whose own are those of torch."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import LBFGS, SGD, RMSprop
from torch.optim.lr_scheduler import (
    ExponentialLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.optim.swa_utils import AveragedModel

from arcsm import FitResult, TrainConfig, fit
from arcsm.training import optimization
from arcsm.training.density import DensityTask
from arcsm.training.optimization import averaging
from small_models import make_model
from small_runs import before_step, correlated_rows, have_same_weights, interrupt, short_config, small_density


def train(changes: dict[str, Any] | None = None, **options: Any) -> tuple[Any, FitResult]:
    model, config = small_density(), short_config(**{"steps": 12, "validate_every": 4, **(changes or {})})
    return model, fit(model, correlated_rows(), correlated_rows(90, seed=5), config, **options)


def rates(result: FitResult) -> list[float]:
    return [row["learning_rate"] for row in result.history]


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


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch's own, of SequentialLR
@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [
        (None, sequence),
        (partial(RMSprop, lr=1e-3), None),
        (partial(SGD, lr=0.01, momentum=0.9), partial(ReduceLROnPlateau, patience=0)),
        (partial(SGD, lr=0.01, momentum=0.9), partial(OneCycleLR, max_lr=0.02, total_steps=20)),
    ],
)
def test_a_resumed_run_continues_with_the_state_of_both(optimizer: Any, scheduler: Any, tmp_path: Path) -> None:
    both = {"optimizer": optimizer, "scheduler": scheduler}
    whole, expected = train(**both)
    with before_step(7, interrupt), pytest.raises(KeyboardInterrupt):
        train({"checkpoint_seconds": 0}, run=tmp_path / "run", **both)
    resumed, result = train(run=tmp_path / "run", resume=True, **both)
    assert have_same_weights(whole, resumed)
    assert rates(result) == rates(expected)


def test_another_kind_of_optimizer_or_scheduler_does_not_resume(tmp_path: Path) -> None:
    sgd = {"optimizer": partial(SGD, lr=0.1)}
    train({"steps": 2}, run=tmp_path / "run", **sgd)
    with pytest.raises(ValueError, match=r"optimizer \(custom SGD then, Adam now\); pass the same optimizer"):
        train({"steps": 2}, run=tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match=r"another scheduler .that of the configuration then, ExponentialLR now"):
        train({"steps": 2}, run=tmp_path / "run", resume=True, scheduler=partial(ExponentialLR, gamma=0.5), **sgd)


@pytest.mark.parametrize(
    ("options", "changes", "error", "message"),
    [
        ({"optimizer": partial(SGD, lr=0.1)}, {"learning_rate": 0.1}, ValueError, "leave config.learning_rate out"),
        ({"scheduler": sequence}, {"warmup_steps": 5}, ValueError, "leave config.warmup_steps out"),
        ({"optimizer": LBFGS}, {}, ValueError, "optimizer: LBFGS evaluates the loss several times a step"),
        ({"optimizer": "adam"}, {}, TypeError, "optimizer: .* got 'adam'; give TrainConfig"),
        ({"optimizer": SGD([torch.zeros(1)], 0.1)}, {}, TypeError, "an instance of SGD; give partial"),
        ({"optimizer": lambda parameters: 3}, {}, TypeError, "optimizer: expected to return a torch.optim.Optimizer"),
        ({"scheduler": lambda optimizer: 3}, {}, TypeError, "scheduler: expected to return an LRScheduler"),
    ],
)
def test_contradictions_are_rejected(
    options: dict[str, Any], changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(changes, **options)


# The optimizers of the configuration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_steps_are_those_of_torch(name: str) -> None:
    torch.manual_seed(0)
    start, results = torch.randn(7, 3), []
    for module in (optimization, torch.optim):
        weight = torch.nn.Parameter(start.clone())
        optimizer = getattr(module, name)([weight], lr=0.1, weight_decay=0.1, fused=True)
        assert isinstance(optimizer, getattr(torch.optim, name))
        for step in range(5):
            optimizer.zero_grad()
            (weight.square() * (step + 1.0)).sum().backward()
            optimizer.step()
        results.append((weight.detach(), optimizer.state_dict()["state"][0]["exp_avg_sq"]))
        assert weight.grad is not None
        optimizer.zero_grad(set_to_none=True)
        assert weight.grad is None
    for ours, its in zip(*results, strict=True):
        assert torch.equal(ours, its)


def test_averaged_weights_and_buffers_are_those_of_update_parameters() -> None:
    torch.manual_seed(0)
    model = make_model()
    x = torch.randn(50, model.features)
    task = DensityTask(model, x, None, TrainConfig(steps=10, batch_size=8, ema=0.9, device="cpu"))
    expected = AveragedModel(copy.deepcopy(model), multi_avg_fn=averaging(0.9))
    for step in range(5):
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.add_(torch.randn_like(tensor) * (step + 1.0))
        task.update_average()
        expected.update_parameters(model)
        found = task.average.state_dict()
        for name, tensor in expected.state_dict().items():
            assert torch.equal(found[name], tensor), name
