"""Trunks compute on inputs and extra features jointly what a plain network would."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from arcsm.implicit import ConvolutionalTrunk, DenseTrunk
from small_vaes import FLOAT64, normal


def test_dense_trunk_concatenates_inputs_and_extra_features() -> None:
    trunk = DenseTrunk(5, (7, 6), extra_features=3).double()
    x, extra = normal(2, 5), normal(2, 4, 3, seed=1)
    both = torch.cat([x.unsqueeze(1).expand(-1, 4, -1), extra], -1)
    expected = torch.tanh(trunk.rest[0](torch.tanh(trunk.first(both))))
    torch.testing.assert_close(trunk(x, extra), expected)


def test_extra_features_are_a_channel_of_a_convolutional_trunk() -> None:
    trunk = ConvolutionalTrunk((2, 8, 8), (3, 4), extra_features=3, smooth=True).double()
    x, extra = normal(2, 128), normal(2, 5, 3, seed=1)
    whole = nn.Conv2d(3, 3, 5, 2, 2, dtype=FLOAT64)
    whole.weight.data = torch.cat([trunk.first.weight, trunk.of_channel.weight], 1)
    whole.bias = trunk.first.bias
    channel = trunk.to_channel(extra).view(10, 1, 8, 8)
    hidden = whole(torch.cat([x.view(2, 2, 8, 8).repeat_interleave(5, 0), channel], 1))
    hidden = softplus(trunk.rest[0](softplus(hidden)))
    expected = softplus(trunk.dense(hidden.flatten(1))).view(2, 5, -1)
    torch.testing.assert_close(trunk(x, extra), expected)


def test_invalid_layers_are_rejected() -> None:
    with pytest.raises(ValueError, match="hidden_features: expected at least one layer"):
        DenseTrunk(3, ())
    with pytest.raises(ValueError, match="4 x 4 is not divisible by 16"):
        ConvolutionalTrunk((1, 4, 4))
