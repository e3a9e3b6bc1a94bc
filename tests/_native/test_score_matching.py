"""Bindings of fused score matching in C; tests/objectives/test_fused.py compares the numbers with autograd."""

import shutil

import pytest
import torch
from torch import Tensor

from arcsm import _native

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, and none is on the path")

WEIGHTS = [torch.randn(4, 5), torch.randn(4), torch.randn(1, 4), torch.randn(1)]


def arguments(**changes: Tensor | list[Tensor] | bool) -> dict[str, object]:
    """Return arguments for five points and layers of four and three units."""
    sizes = [(4, 3 + 2), (4,), (3, 4), (3,), (1, 3), (1,)]
    inputs: dict[str, object] = {
        "context": torch.randn(5, 3),
        "features": torch.randn(5, 2),
        "slopes": torch.ones(5, 1),
        "coefficients": torch.randn(6, 5),
        "parameters": [torch.randn(size) for size in sizes],
        "residual": False,
        "tangent": True,
    }
    return inputs | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"context": torch.randn(5, 4)},
        {"context": torch.randn(6, 3)},
        {"context": torch.randn(15)},
        {"features": torch.randn(4, 2)},
        {"slopes": torch.ones(5, 3)},
        {"slopes": torch.ones(1, 1)},
        {"coefficients": torch.randn(5, 5)},
        {"coefficients": torch.randn(6, 4)},
        {"parameters": []},
        {"parameters": WEIGHTS[2:]},
        {"parameters": WEIGHTS[:3]},
        {"parameters": [WEIGHTS[0], torch.randn(3), *WEIGHTS[2:]]},
        {"parameters": [WEIGHTS[0].T.contiguous(), *WEIGHTS[1:]]},
        {"parameters": [*WEIGHTS[:2], torch.randn(2, 4), torch.randn(2)]},
        {"residual": True},
    ],
)
def test_shapes_that_do_not_match_are_rejected(changes: dict[str, Tensor | list[Tensor] | bool]) -> None:
    _native.score_matching_forward_backward(**arguments())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shapes do not match"):
        _native.score_matching_forward_backward(**arguments(**changes))  # type: ignore[arg-type]


def test_double_precision_is_rejected() -> None:
    with pytest.raises(TypeError, match="float32"):
        _native.score_matching_forward_backward(**arguments(features=torch.randn(5, 2, dtype=torch.float64)))  # type: ignore[arg-type]


def test_no_points_give_zero_loss_and_gradients() -> None:
    none = {"context": torch.empty(0, 3), "features": torch.empty(0, 2), "slopes": torch.empty(0, 1)}
    loss, by_context, gradients = _native.score_matching_forward_backward(
        **arguments(**none, coefficients=torch.empty(6, 0))
    )  # type: ignore[arg-type]
    assert loss == 0.0
    assert by_context.shape == (0, 3)
    assert all(bool((gradient == 0.0).all()) for gradient in gradients)
