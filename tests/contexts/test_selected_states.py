"""Incremental states of contexts from which rows are selected."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from arcsm import MADE, Context, PixelCNNPP

FLOAT64 = torch.float64


def contexts() -> list[tuple[Context, Tensor | None]]:
    labels, dense = torch.arange(4) % 2, torch.randn(4, 2, dtype=FLOAT64)
    found: list[tuple[Context, Tensor | None]] = [
        (MADE(6, 2, (8, 8), residual=True, order=(3, 1, 0, 5, 2, 4)), None),
        (MADE(6, 2, (8,), sinusoids=2, classes=2), labels),
        (MADE(6, 2, (), condition_features=2), dense),
        (PixelCNNPP((2, 5, 7), 3, nr_filters=4, nr_resnet=2), None),
        (PixelCNNPP((1, 6, 5), 3, nr_filters=4, nr_resnet=1, classes=2), labels),
        (PixelCNNPP((3, 4, 4), 3, nr_filters=4, nr_resnet=1, condition_features=2), dense),
    ]
    for context, _ in found:
        with torch.no_grad():
            for parameter in context.double().eval().parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return found


@pytest.mark.parametrize("index", range(6))
def test_selected_rows_continue_like_the_parallel_pass(index: int) -> None:
    context, condition = contexts()[index]
    rows = torch.tensor([2, 2, 0, 3, 2])
    x = torch.randn(4, context.features, dtype=FLOAT64)
    with torch.no_grad():
        expected = context(x[rows], None if condition is None else condition[rows])
        for moment in range(0, context.features, 1 + context.features // 12):
            state, before = context.begin((4,), condition), x
            for position, d in enumerate(context.order):
                if position == moment:
                    context.select(state, rows)
                    before = x[rows]
                previous = None if position == 0 else before[:, context.order[position - 1]]
                found = context.step(state, previous)
                if position >= moment:
                    torch.testing.assert_close(found, expected[:, d], rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("index", [0, 3])
def test_selection_needs_a_flat_batch(index: int) -> None:
    context, _ = contexts()[index]
    with pytest.raises(ValueError, match="state: expected a batch of one dimension"):
        context.select(context.begin((2, 2)), torch.tensor([0]))
