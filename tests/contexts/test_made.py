"""MADE: a context sees every feature before it, and the condition; ``arcsm.check`` shows the rest."""

from typing import Any

import pytest
import torch

from arcsm import MADE


def randomised(made: MADE) -> MADE:
    """Return the context in double precision, with random biases."""
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return made.double()


@pytest.mark.parametrize(("layers", "residual"), [(0, False), (1, False), (3, False), (3, True)])
@pytest.mark.parametrize("order", [None, (3, 0, 4, 2, 1)])
def test_a_context_depends_on_every_feature_before_it_in_the_order(
    order: tuple[int, ...] | None, layers: int, residual: bool
) -> None:
    made = randomised(MADE(5, 3, [16] * layers, order=order, residual=residual))
    jacobian: Any = torch.autograd.functional.jacobian(made, torch.randn(5, dtype=torch.float64))  # (D, C, D)
    influence = jacobian.abs().amax(1)
    for position, d in enumerate(made.order):
        for e in made.order[:position]:
            assert influence[d, e] > 1e-6


@pytest.mark.parametrize(("layers", "features"), [(0, 4), (2, 1), (2, 4)])
def test_the_condition_reaches_every_feature_including_the_first(layers: int, features: int) -> None:
    made = randomised(MADE(features, 3, [8] * layers, condition_features=2))
    x = torch.randn(features, dtype=torch.float64)
    first, second = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    assert (made(x, first) - made(x, second)).abs().amin() > 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": 0}, "features=0"),
        ({"features": 2, "context_features": 0}, "context_features=0"),
        ({"features": 2, "hidden_features": (8, 0)}, "hidden_features"),
        ({"features": 3, "order": (0, 1, 1)}, "order"),
        ({"features": 2, "hidden_features": (8, 9), "residual": True}, "hidden_features"),
        ({"features": 2, "sinusoids": -1}, "sinusoids"),
        ({"features": 2, "sinusoids": 2, "max_frequency": 0.0}, "max_frequency"),
        ({"features": 2, "hide": 0.2}, "hide: expected 0 without missing=True, got 0.2"),
        ({"features": 2, "missing": True, "hide": 0.6}, "hide: expected a share from 0 to 0.5, got 0.6"),
    ],
)
def test_impossible_arguments_are_rejected_by_name(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        MADE(**arguments)
    assert "\n" not in str(error.value)
