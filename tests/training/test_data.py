"""Training rows: what does not fit is rejected with its name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from arcsm import MADE, AutoregressiveModel, GaussianHead, TrainConfig, fit
from arcsm.training import data
from small_runs import short_config, small_density


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 2), "at least one row"),
        (torch.zeros(5, 3), r"expected a tensor \(N, 2\), got \(5, 3\)"),
        ([[1.0, 2.0]], r"expected a tensor \(N, 2\), got list"),
        (torch.tensor([[1.0, 2.0], [math.inf, 0.0]]), "1 values are NaN or infinite, the first in row 1, column 0"),
        (torch.tensor([[1.0, 2.0], [1.0, 0.0]]), "column 0 is constant"),
    ],
)
def test_bad_rows_are_rejected(x: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(small_density(), x, config=short_config(steps=1))  # type: ignore[arg-type]


def test_conditions_of_another_type_are_rejected() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,), condition_features=1), GaussianHead(4))
    with pytest.raises(ValueError, match=r"condition: expected a torch\.Tensor, got ndarray"):
        fit(model, torch.randn(20, 2), config=TrainConfig(steps=1), condition_train=np.zeros((20, 1)))  # type: ignore[arg-type]


def test_columns_that_single_precision_cannot_resolve_are_rejected() -> None:
    x = torch.randn(100, 2, dtype=torch.float64)
    x[:, 1] = 1.7e9 + 100.0 * x[:, 1]
    with pytest.raises(ValueError, match=r"x_train: column '1' varies by .* too little for single precision"):
        fit(small_density(), x, config=short_config(steps=1))
    fit(small_density().double(), x, config=short_config(steps=1))


def test_rows_with_a_graph_or_from_inference_mode_are_accepted() -> None:
    raw = torch.randn(64, 2, requires_grad=True)
    fit(small_density(), raw * 2.0, config=short_config(steps=3))
    assert raw.grad is None
    with torch.inference_mode():
        rows = torch.randn(64, 2)
    fit(small_density(noise=False), rows, config=short_config(steps=2, objective="ssm"))


@pytest.mark.parametrize("columns", [True, False])
def test_moments_of_rows_on_a_gpu_join_the_configuration_on_the_cpu(columns: bool) -> None:
    with FakeTensorMode():  # a GPU without values
        moments = data._moments(torch.empty(8, 2, device="cuda"), columns)
    assert [moment.device.type for moment in moments] == ["cpu", "cpu"]
