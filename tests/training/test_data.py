"""Training rows: what does not fit is rejected with its name."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import arcsm
from arcsm import MADE, AnyOrder, AutoregressiveModel, GaussianHead, TrainConfig, fit
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
        (torch.zeros(5, 2, dtype=torch.complex64), "expected a dense tensor of real numbers, got torch.complex64"),
        (torch.zeros(5, 2).to_sparse(), "expected a dense tensor of real numbers, got torch.float32, torch.sparse_coo"),
    ],
)
def test_bad_rows_are_rejected(x: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(small_density(), x, config=short_config(steps=1))  # type: ignore[arg-type]


def test_masked_values_are_missing_ones() -> None:
    values = np.random.default_rng(0).normal(size=(200, 3))
    values[:20, 0] = -999.0
    model = AutoregressiveModel(AnyOrder(3, 4, (8,), 8), GaussianHead(4))
    fit(model, np.ma.masked_equal(values, -999.0), config=short_config(steps=2, objective="mle"))  # type: ignore[arg-type]
    known = values[20:, 0]
    assert float(model.shift[0]) == pytest.approx(known.mean(), abs=1e-3)
    assert float(model.scale[0]) == pytest.approx(known.std(), rel=1e-3)


@pytest.mark.parametrize("change", [lambda x: x[::-1], lambda x: x.astype(">f4")], ids=["reversed", "big endian"])
def test_views_and_other_byte_orders_are_the_same_rows(change: Callable[[np.ndarray], np.ndarray]) -> None:
    values = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    changed = change(values)
    fitted = [copy.deepcopy(small_density()) for _ in range(2)]
    for model, rows in zip(fitted, (changed, torch.tensor(changed.tolist())), strict=True):
        fit(model, rows, config=short_config(steps=2))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(*(model.state_dict().values() for model in fitted), strict=True))


def test_a_frame_trains_without_warnings_and_stays_unchanged() -> None:
    frame = pd.DataFrame(torch.randn(40, 2).numpy())
    frame.to_numpy().flags.writeable = False
    before = frame.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(small_density(), frame, frame, config=short_config(steps=2))  # type: ignore[arg-type]
    assert frame.equals(before)


def test_conditions_of_another_type_are_rejected() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,), condition_features=1), GaussianHead(4))
    with pytest.raises(ValueError, match=r"condition: expected a torch\.Tensor, got list"):
        fit(model, torch.randn(20, 2), config=TrainConfig(steps=1), condition_train=[[0.0]] * 20)  # type: ignore[arg-type]


class Recorder(torch.nn.Module):
    """A network of its own that normalises batches, and keeps the largest value that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4))
        self.largest = 0.0

    def forward(self, condition: torch.Tensor) -> torch.Tensor:
        self.largest = max(self.largest, float(condition.abs().max()))
        return self.layers(condition)  # type: ignore[no-any-return]


def test_a_condition_net_sees_whole_batches_in_standardised_units_alone() -> None:
    net, x, years = Recorder(), torch.randn(64, 2), 2000.0 + torch.randn(64, 1)
    model = AutoregressiveModel(MADE(2, 4, (8,), condition_features=1, condition_net=net), GaussianHead(4))
    options = {"condition_train": years, "condition_valid": years}
    assert fit(model, x, x, TrainConfig(steps=2, objective="mle", device="cpu"), **options).steps == 2
    assert 0.0 < net.largest < 10.0


@pytest.mark.parametrize(("offset", "step"), [(0.0, 1.0), (1.7e9, 1.0), (4.7e14, 1e5)])  # seconds, and hertz of light
def test_conditions_far_from_zero_are_standardised_exactly(offset: float, step: float, tmp_path: Path) -> None:
    vectors = offset + step * torch.arange(64.0, dtype=torch.float64).unsqueeze(-1)
    model = AutoregressiveModel(MADE(2, 4, (8,), condition_features=1), GaussianHead(4))
    fit(model, torch.randn(64, 2), config=short_config(steps=2, objective="mle"), condition_train=vectors)
    found, by_hand = model.standardise_condition(vectors), (vectors - vectors.mean()) / vectors.std(unbiased=False)
    torch.testing.assert_close(found, by_hand, rtol=0.0, atol=1e-6)
    arcsm.save(model, tmp_path / "model")
    loaded = arcsm.load(tmp_path / "model")
    for same in (loaded, copy.deepcopy(model).half().float(), model.double()):
        assert torch.equal(same.standardise_condition(vectors), found)
        assert same.standardise_condition(vectors.float()).dtype == torch.float32


@pytest.mark.parametrize(("mean", "std"), [(1.7e9, 1.0), (1e12, 100.0), (1e6, 1e-4)])
def test_a_model_in_double_precision_resolves_columns_far_from_zero(mean: float, std: float) -> None:
    x = mean + std * torch.randn(200, 2, dtype=torch.float64)
    model = small_density().double()
    fit(model, x, config=short_config(steps=2))
    standardised = model.standardise(x)
    assert float(standardised.mean().abs()) < 1e-6
    assert float(standardised.std()) == pytest.approx(1.0, abs=0.01)
    with pytest.raises(ValueError, match="column 1 is constant"):
        fit(model, torch.stack([x[:, 0], x[:1, 1].expand(200)], 1), config=short_config(steps=2))


def test_all_conditions_are_checked_before_training() -> None:
    model, steps = AutoregressiveModel(MADE(2, 4, (8,), classes=2), GaussianHead(4)), []
    labels = torch.arange(64) % 2
    labels[-1] = 2
    with pytest.raises(ValueError, match="condition: expected integer labels from 0 to 1"):
        fit(
            model,
            torch.randn(64, 2),
            config=TrainConfig(steps=5, batch_size=8, objective="mle"),
            condition_train=labels,
            callbacks=[steps.append],
        )
    assert not steps


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
