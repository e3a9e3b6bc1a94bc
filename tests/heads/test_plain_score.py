"""The paper's own score network against an ordinary perceptron."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from arcsm import PlainScoreHead
from small_heads import FLOAT64


@pytest.mark.parametrize("activation", ["silu", "tanh"])
def test_the_score_is_a_perceptron_of_context_value_and_log_noise(activation: Any) -> None:
    torch.manual_seed(0)
    head = PlainScoreHead(3, (5, 4), activation).double()
    function = {"silu": nn.SiLU, "tanh": nn.Tanh}[activation]
    whole = nn.Sequential(head.first, function(), head.layers[0], function(), head.layers[1])
    context, x, sigma = (torch.randn(7, *shape, dtype=FLOAT64) for shape in ((3,), (), ()))
    sigma = sigma.exp()
    for noise, level in ((sigma, sigma.log()), (0.5, torch.full_like(x, 0.5).log()), (None, torch.zeros_like(x))):
        inputs = torch.cat([context, x[:, None], level[:, None]], 1)
        torch.testing.assert_close(head.score(context, x, noise), whole(inputs)[:, 0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_features": ()}, "hidden_features: expected at least one layer"),
        ({"activation": "relu"}, 'activation: expected "silu" or "tanh", got \'relu\''),
        ({"context_features": 0}, "context_features"),
    ],
)
def test_invalid_arguments_are_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlainScoreHead(**arguments)
