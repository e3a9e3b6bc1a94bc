"""Conditions: they are standardised like data, and those of another shape, type or range are rejected."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from arcsm import (
    MADE,
    AutoregressiveModel,
    NoiseLadder,
    ScoreHead,
    TrainConfig,
    fit,
    load,
    objectives,
    save,
)
from arcsm.denoise import MissingValues, particle_filter, tweedie
from arcsm.interop import AutoregressiveDistribution, export_scorer
from small_models import seeded


def conditional(**condition: int) -> AutoregressiveModel:
    return AutoregressiveModel(MADE(2, 4, (8,), **condition), ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 4))


def quick(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 4, "batch_size": 16, "device": "cpu", "validate_every": 2, **changes})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_integers_are_condition_vectors_too(dtype: torch.dtype) -> None:
    model, x = conditional(condition_features=2), torch.randn(32, 2)
    given = (torch.arange(64).view(32, 2) % 7).to(dtype)
    fit(model, x, x, quick(), condition_train=given, condition_valid=given)
    torch.testing.assert_close(model.condition_shift, given.double().mean(0))
    for method in (model.score_alone, model.log_prob):
        assert torch.equal(method(x, condition=given), method(x, condition=given.double()))


@pytest.mark.parametrize("which", ["condition_train", "condition_valid"])
def test_conditions_are_checked_before_training(which: str) -> None:
    model, x = conditional(classes=3), torch.randn(32, 2)
    conditions = {"condition_train": torch.zeros(32).long(), "condition_valid": torch.zeros(32).long()}
    with pytest.raises(ValueError, match="condition: expected one for each"):
        fit(model, x, x, quick(), **{**conditions, which: torch.zeros(()).long()})


@pytest.mark.parametrize(("kind", "whole"), [("classes", False), ("condition_features", True)])
def test_conditions_move_to_the_device_of_the_model(kind: str, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake GPU holds shapes and devices only, and rejects operations on tensors of two devices."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # it has no values that could be checked
    model = conditional(**{kind: 3})
    module: torch.nn.Module = model if whole else model.context
    with FakeTensorMode() as mode:
        x = torch.empty(8, 2, device="cuda" if whole else "cpu")
        vectors = torch.empty(8, 3, dtype=torch.float64, device="cuda")
        condition = torch.empty(8, dtype=torch.uint8, device="cuda") if kind == "classes" else vectors
        state = {name: mode.from_tensor(t) for name, t in [*module.named_parameters(), *module.named_buffers()]}
        found = functional_call(module, state, (x, -1, condition) if whole else (x, condition))
        assert (found[0] if whole else found).device.type == "cpu"


# Units of condition vectors -----------------------------------------------------------------------------------------

UNITS: dict[str, Any] = {"condition_shift": [300.0, -2.0], "condition_scale": [0.5, 40.0]}
Evaluation = Callable[[AutoregressiveModel, Tensor, Tensor], Tensor]
EVALUATIONS: dict[str, Evaluation] = {
    "score": lambda model, x, c: model.score(x, condition=c)[0],
    "log_prob": lambda model, x, c: model.log_prob(x, condition=c),
    "cdf": lambda model, x, c: model.cdf(x, condition=c),
    "icdf": lambda model, x, c: model.icdf(torch.sigmoid(x), condition=c),
    "conditional_icdf": lambda model, x, c: model.conditional_icdf(x, 0.3, condition=c),
    "sample": lambda model, x, c: model.sample(6, generator=seeded(), condition=c, denoise=True),
    "csm": lambda model, x, c: objectives.csm(model, x, 0.3, condition=c, generator=seeded()),
    "mle": lambda model, x, c: objectives.mle(model, x, condition=c, generator=seeded()),
    "tweedie": lambda model, x, c: tweedie(model, x, 0.5, condition=c),
    "particle_filter": lambda model, x, c: (
        particle_filter(
            model, x.index_fill(1, torch.tensor(1), math.nan), MissingValues(), 4, seeded(), condition=c
        ).candidates
    ),
    "distribution": lambda model, x, c: AutoregressiveDistribution(model, c).log_prob(x),
    "export": lambda model, x, c: export_scorer(model).module()(x, c)[0],
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_evaluation_takes_conditions_in_their_own_units(name: str) -> None:
    plain = conditional(condition_features=2).double().eval()
    model = AutoregressiveModel(plain.context, plain.head, plain.noise, **UNITS).double().eval()
    x, z = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    condition = z * model.condition_scale + model.condition_shift
    found, expected = EVALUATIONS[name](model, x, condition), EVALUATIONS[name](plain, x, z)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(expected, EVALUATIONS[name](plain, x, z + 1.0))


def test_training_does_not_depend_on_the_units_of_conditions(tmp_path: Path) -> None:
    x, z = torch.randn(64, 2), torch.rand(64, 2)
    far = torch.stack([2000.0 + 2.0 * z[:, 0].double(), torch.full((64,), 7.0, dtype=torch.float64)], 1)
    near = torch.stack([z[:, 0], torch.zeros(64)], 1)
    initial = conditional(condition_features=2)
    found, expected = copy.deepcopy(initial), copy.deepcopy(initial)
    fit(found, x, x, quick(steps=20), far, far)
    fit(expected, x, x, quick(steps=20), near, near)
    torch.testing.assert_close(found.log_prob(x, condition=far), expected.log_prob(x, condition=near))
    torch.testing.assert_close(found.condition_shift.double(), far.mean(0))
    assert float(found.condition_scale[1]) == 1.0  # of a constant column

    save(found, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert torch.equal(again.log_prob(x, condition=far), found.log_prob(x, condition=far))

    fit(initial, x, config=quick(standardise="none"), condition_train=far)
    assert initial.condition_shift.tolist() == [0.0, 0.0]


def test_units_and_values_of_conditions_are_checked() -> None:
    model, x = conditional(condition_features=2), torch.randn(8, 2)
    with pytest.raises(
        ValueError, match=r"condition_scale: expected positive finite numbers \(1 for constant columns\)"
    ):
        model.set_condition_standardisation(0.0, [1.0, 0.0])
    with pytest.raises(ValueError, match=r"condition_shift: expected a number or 2 of them, got \(3,\)"):
        model.set_condition_standardisation([0.0, 0.0, 0.0], 1.0)
    with pytest.raises(ValueError, match="condition: holds NaN or infinity"):
        fit(model, x, config=quick(), condition_train=torch.tensor([[0.0, math.inf]] * 8))
