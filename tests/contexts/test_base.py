"""What every context checks: its input, its condition, the order of its steps, and the selection of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from arcsm import MADE, Context, PixelCNNPP
from arcsm._runtime.conditions import map_condition
from incremental_passes import condition_for, incremental_contexts

SMALL: dict[str, Callable[..., Context]] = {
    "MADE": lambda **options: MADE(4, 3, (8,), **options).double(),
    "PixelCNNPP": lambda **options: PixelCNNPP((1, 2, 2), 3, nr_filters=4, nr_resnet=1, **options).double().eval(),
}


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest) -> Callable[..., Context]:
    """Return a builder of contexts of four features in double precision."""
    return SMALL[request.param]


@pytest.mark.parametrize("shape", [(5, 3), ()])
def test_rows_of_another_width_are_rejected(small: Callable[..., Context], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x: expected shape \(\*, 4\)"):
        small()(torch.zeros(shape, dtype=torch.float64))


BOTH = {"classes": 3, "condition_features": 2}
BAD_CONDITIONS: dict[str, tuple[dict[str, int], Any, str]] = {
    "not expected": ({}, torch.zeros(4, 1), "has none"),
    "vectors missing": ({"condition_features": 3}, None, r"needs vectors \(\*, 3\), got None"),
    "labels missing": ({"classes": 3}, None, "needs labels below 3, got None"),
    "not a tensor": ({"classes": 3}, [0, 1, 2, 0], "expected a torch.Tensor, got list"),
    "vectors of another size": ({"condition_features": 3}, torch.zeros(4, 2), r"expected numbers of shape \(\*, 3\)"),
    "complex vectors": ({"condition_features": 3}, torch.zeros(4, 3, dtype=torch.cfloat), "expected numbers of shape"),
    "vectors with NaN": ({"condition_features": 3}, torch.full((4, 3), torch.nan), "holds NaN"),
    "too many vectors": ({"condition_features": 3}, torch.zeros(5, 3), r"one for each row \(4, 3\), or one for all"),
    "label too large": ({"classes": 3}, torch.full((4,), 3), "integer labels from 0 to 2"),
    "labels of floats": ({"classes": 3}, torch.zeros(4), "integer labels from 0 to 2"),
    "one tensor for both": (
        BOTH,
        torch.zeros(4, 2),
        r"needs {'classes': labels below 3, 'vector': .*}, got one",
    ),
    "other keys": (BOTH, {"labels": torch.zeros(4), "vector": torch.zeros(4, 2)}, "keys 'classes' and 'vector', got"),
    "both, not tensors": (BOTH, {"classes": [0], "vector": [[0.0, 0.0]]}, "expected tensors under the keys"),
    "both, a wrong label": (BOTH, {"classes": torch.tensor(3), "vector": torch.zeros(2)}, "labels from 0 to 2"),
    "too many labels": ({"classes": 3}, torch.zeros(5).long(), r"one for each row \(4,\), or one for all, got \(5,\)"),
}


@pytest.mark.parametrize("name", BAD_CONDITIONS)
def test_a_wrong_condition_is_rejected(name: str) -> None:
    options, condition, message = BAD_CONDITIONS[name]
    context = SMALL["MADE"](**options)
    with pytest.raises(ValueError, match=f"condition: .*{message}"):
        context(torch.zeros(4, 4, dtype=torch.float64), condition)
    with pytest.raises(ValueError, match=f"condition: .*{message}"):
        context.begin((4,), condition)


def test_labels_may_be_of_any_integer_type_and_shared(small: Callable[..., Context]) -> None:
    context, x = small(classes=2), torch.randn(2, 4, dtype=torch.float64)
    expected = context(x, torch.tensor([1, 1]))
    assert torch.equal(context(x, torch.tensor([1, 1], dtype=torch.uint8)), expected)
    assert torch.equal(context(x, torch.tensor(1)), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition_features": -1}, "expected whole numbers from 0 to 1048576, got condition_features=-1"),
        ({"condition_net": nn.Identity()}, "condition_net: needs a condition"),
        ({"condition_net": 3, "classes": 2}, "condition_net: expected a torch.nn.Module, got int"),
        (
            {"condition_net": nn.Linear(2, 4), "condition_features": 3},
            r"condition_net: rejects its condition \(Run",
        ),
        ({"condition_net": nn.Identity(), "classes": 2}, r"condition_net: expected embeddings \(2, E\), got \(2,\)"),
        ({"condition_net": {"kind": "Nothing"}, "classes": 2}, "condition_net.kind: expected one of"),
    ],
)
def test_impossible_kinds_of_condition_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SMALL["MADE"](**options)


def test_steps_in_the_wrong_order_are_rejected(small: Callable[..., Context]) -> None:
    context, x = small(), torch.zeros(3, dtype=torch.float64)
    state = context.begin((3,))
    with pytest.raises(ValueError, match="x_previous: expected None at step 0"):
        context.step(state, x)
    context.step(state, None)
    with pytest.raises(ValueError, match="x_previous: expected a tensor at step 1"):
        context.step(state, None)
    for _ in range(3):
        context.step(state, x)
    with pytest.raises(ValueError, match="all 4 features of this batch are already known"):
        context.step(state, x)


@pytest.mark.parametrize("options", [{}, BOTH])
def test_selected_rows_continue_as_a_batch_of_their_own(small: Callable[..., Context], options: dict[str, int]) -> None:
    context = small(**options)
    x, condition = torch.randn(3, 4, dtype=torch.float64), condition_for(context, (3,))
    rows = torch.tensor([2, 0, 2, 2, 1])
    expected = incremental_contexts(context, x[rows], map_condition(lambda part: part[rows], condition))
    for selected_at in range(1, 4):
        state, values = context.begin((3,), condition), x
        previous: Tensor | None = None
        for position, d in enumerate(context.order):
            if position == selected_at:
                context.select(state, rows)
                values = x[rows]
                previous = values[:, context.order[position - 1]]
            contexts = context.step(state, previous)
            if position >= selected_at:
                torch.testing.assert_close(contexts, expected[:, d], rtol=0.0, atol=1e-12)
            previous = values[:, d]


def test_selection_needs_a_batch_of_one_dimension(small: Callable[..., Context]) -> None:
    context = small()
    with pytest.raises(ValueError, match=r"state: expected a batch of one dimension, got \(2, 3\)"):
        context.select(context.begin((2, 3)), torch.tensor([0]))


def test_selection_is_optional() -> None:
    class WithoutSelection(MADE):
        select = Context.select

    context = WithoutSelection(2, 2, (4,))
    with pytest.raises(NotImplementedError, match="WithoutSelection does not support the selection of rows"):
        context.select(context.begin((2,)), torch.tensor([0]))
