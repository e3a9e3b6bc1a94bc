"""Gradients and weights do not depend on how a batch is divided into parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from arcsm import (
    MADE,
    AutoregressiveModel,
    GaussianHead,
    NoiseLadder,
    PixelCNNPP,
    ScoreHead,
    TrainConfig,
    fit,
    objectives,
)
from arcsm._runtime.process_group import even_slices
from arcsm._runtime.random import Share, Source


def small_model(head: Any = None, context: Any = None, **noise: Any) -> AutoregressiveModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        context = context() if context else MADE(3, 4, (16,))
        head = head() if head else ScoreHead(4, (8,))
    return AutoregressiveModel(context, head, NoiseLadder(1.0, 0.1, 4, **noise))


OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "csm": lambda *a, **k: objectives.csm(*a, mix=0.3, **k),
    "dsm": objectives.dsm,
    "dsm, one sigma": lambda *a, **k: objectives.dsm(*a, sigma=0.2, **k),
    "ssm": lambda *a, **k: objectives.ssm(*a, slices=2, **k),
    "ssm, sphere": lambda *a, **k: objectives.ssm(*a, projections="sphere", **k),
    "sm": objectives.sm,
    "mle": objectives.mle,
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_of_shares_sum_to_that_of_the_batch(name: str) -> None:
    model = small_model(partial(GaussianHead, 4) if name == "mle" else None, continuous=name != "csm").double()
    x = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def gradient(sources: list[tuple[slice, Source]]) -> list[Tensor]:
        model.zero_grad()
        for part, source in sources:
            loss = OBJECTIVES[name](model, x[part], generator=source) * (len(x[part]) / len(x))
            loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole = gradient([(slice(0, 10), torch.Generator().manual_seed(5))])
    shared = [(part, Share(torch.Generator().manual_seed(5), 10, part.start)) for part in even_slices(10, 3)]
    assert len(whole) == len(list(model.parameters()))
    for a, b in zip(whole, gradient(shared), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)
    other = [(part, torch.Generator().manual_seed(5)) for part in even_slices(10, 3)]  # each draws as a whole batch
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(whole, gradient(other), strict=True))


MODELS: dict[str, Callable[[], AutoregressiveModel]] = {
    "scores": small_model,
    "gaussian": lambda: small_model(lambda: GaussianHead(4)),
    "missing": lambda: small_model(context=lambda: MADE(3, 4, (16,), missing=True)),
    "residual": lambda: small_model(context=lambda: MADE(3, 4, (16, 16), residual=True)),
    "colours": lambda: small_model(context=lambda: PixelCNNPP((3, 2, 2), 4, nr_filters=2, nr_resnet=1)),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_has_a_gradient_as_distributed_training_expects(name: str) -> None:
    model = MODELS[name]()
    x = torch.randn(6, model.features, generator=torch.Generator().manual_seed(1))
    objectives.csm(model, x, mix=0.3, generator=torch.Generator().manual_seed(2)).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


def test_accumulated_gradients_train_to_the_same_weights() -> None:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    results = []
    for parts in (1, 5):
        model = small_model()
        config = TrainConfig(steps=6, batch_size=16, device="cpu", dequantise=0.1, accumulate=parts)
        result = fit(model, x, x, config)
        results.append((result.best_loss, model.state_dict()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for key, weights in results[0][1].items():
        assert torch.allclose(weights, results[1][1][key], rtol=0.0, atol=1e-5), key


def test_more_parts_than_rows_are_rejected() -> None:
    with pytest.raises(ValueError, match="batch_size: 4 rows cannot be divided into 5 parts"):
        fit(small_model(), torch.randn(8, 3), config=TrainConfig(steps=1, batch_size=4, accumulate=5, device="cpu"))
