"""Conditions: labels and vectors of another shape, type or range are rejected before any work."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from arcsm import (
    MADE,
    AutoregressiveModel,
    Context,
    NoiseLadder,
    PixelCNNPP,
    ScoreHead,
    TrainConfig,
    fit,
)
from arcsm.interop.torch_distribution import AutoregressiveDistribution


def conditional(**condition: int) -> AutoregressiveModel:
    return AutoregressiveModel(MADE(2, 4, (8,), **condition), ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 4))


def quick(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 4, "batch_size": 16, "device": "cpu", "validate_every": 2, **changes})


@pytest.mark.parametrize(
    "context", [MADE(4, 2, (8,), classes=3), PixelCNNPP((1, 2, 2), 2, nr_filters=4, nr_resnet=1, classes=3)]
)
@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (torch.zeros(5, 1, dtype=torch.long), r"expected one for each row \(5,\), or one for all, got \(5, 1\)"),
        (torch.zeros(3, dtype=torch.long), r"expected one for each row \(5,\), or one for all, got \(3,\)"),
        (torch.zeros(5), "expected integer labels from 0 to 2"),
        (torch.full((5,), 3), "expected integer labels from 0 to 2"),
        ([0] * 5, "expected a torch.Tensor, got list"),
        (None, "this model needs labels below 3, got None"),
    ],
)
def test_labels_need_one_value_for_each_row(context: Context, condition: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"condition: {message}"):
        context(torch.zeros(5, 4), condition)
    with pytest.raises(ValueError, match=f"condition: {message}"):
        context.begin((5,), condition)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_all_integer_types_are_accepted(dtype: torch.dtype) -> None:
    model, x = conditional(classes=3), torch.randn(6, 2)
    labels = torch.arange(6) % 3
    expected = model.log_prob(x, condition=labels)
    assert torch.equal(model.log_prob(x, condition=labels.to(dtype)), expected)
    assert torch.equal(model.score(x, condition=labels.to(dtype))[0], model.score(x, condition=labels)[0])
    assert len(fit(model, x, config=quick(), condition_train=labels.to(dtype)).history) == 2


def test_condition_vectors_are_cast_or_rejected() -> None:
    model, x = conditional(condition_features=2), torch.randn(6, 2)
    given = torch.randn(6, 2)
    torch.testing.assert_close(model.score(x, condition=given.double()), model.score(x, condition=given))
    torch.testing.assert_close(model.log_prob(x, condition=given.double()), model.log_prob(x, condition=given))
    for wrong, message in (
        (given[:, None], r"expected one for each row \(6, 2\)"),
        (given[:4], r"expected one for each row \(6, 2\)"),
        (given[:, :1], r"expected floats of shape \(\*, 2\)"),
        (torch.full((6, 2), math.nan), "holds NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=f"condition: {message}"):
            model.score(x, condition=wrong)


@pytest.mark.parametrize("which", ["condition_train", "condition_valid"])
@pytest.mark.parametrize("shape", [(32, 1), (31,), ()])
def test_conditions_are_checked_before_training(which: str, shape: tuple[int, ...]) -> None:
    model, x = conditional(classes=3), torch.randn(32, 2)
    conditions = {"condition_train": torch.zeros(32).long(), "condition_valid": torch.zeros(32).long()}
    with pytest.raises(ValueError, match="condition: expected one for each"):
        fit(model, x, x, quick(), **{**conditions, which: torch.zeros(shape).long()})


def test_labels_are_rejected_as_condition_vectors() -> None:
    model = conditional(condition_features=2)
    with pytest.raises(ValueError, match=r"condition: expected \(\*, 2\), got \(5, 3\)"):
        AutoregressiveDistribution(model, torch.zeros(5, 3, dtype=torch.long))
