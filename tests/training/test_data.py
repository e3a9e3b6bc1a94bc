"""Training rows: what does not fit is rejected with its name."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch

import arcsm
from arcsm import MADE, AutoregressiveModel, GaussianHead, TrainConfig, fit
from small_runs import short_config, small_density


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(5, 3), r"expected a tensor \(N, 2\), got \(5, 3\)"),
        ([[1.0, 2.0]], r"expected a tensor \(N, 2\), got list"),
        (torch.tensor([[1.0, 2.0], [math.inf, 0.0]]), "1 values are NaN or infinite, the first in row 1, column 0"),
        (torch.tensor([[1.0, 2.0], [1.0, 0.0]]), "column 0 is constant"),
        (torch.zeros(5, 2).to_sparse(), "expected a dense tensor of real numbers, got torch.float32, torch.sparse_coo"),
    ],
)
def test_bad_rows_are_rejected(x: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(small_density(), x, config=short_config(steps=1))  # type: ignore[arg-type]


@pytest.mark.parametrize(("offset", "step"), [(0.0, 1.0), (4.7e14, 1e5)])  # hertz of light
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


def test_all_conditions_are_checked_before_training() -> None:
    model, steps = AutoregressiveModel(MADE(2, 4, (8,), classes=2), GaussianHead(4)), []
    labels = torch.arange(64) % 2
    labels[-1] = 2
    config = TrainConfig(steps=5, batch_size=8, objective="mle")
    with pytest.raises(ValueError, match="condition: expected integer labels from 0 to 1"):
        fit(model, torch.randn(64, 2), config=config, condition_train=labels, callbacks=[steps.append])
    assert not steps


def test_columns_that_single_precision_cannot_resolve_are_rejected() -> None:
    x = torch.randn(100, 2, dtype=torch.float64)
    x[:, 1] = 1.7e9 + 100.0 * x[:, 1]
    with pytest.raises(ValueError, match=r"x_train: column '1' varies by .* too little for single precision"):
        fit(small_density(), x, config=short_config(steps=1))
    model = small_density().double()
    fit(model, x, config=short_config(steps=1))
    assert float(model.standardise(x).std()) == pytest.approx(1.0, abs=0.01)
