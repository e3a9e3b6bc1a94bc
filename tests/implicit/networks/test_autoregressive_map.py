"""The autoregressive map in torch against a plain loop."""

from __future__ import annotations

import torch
from torch import Tensor

from arcsm.implicit.networks.autoregressive_map import TorchMap
from small_vaes import (
    FLOAT64,
    normal,
)


def test_map_and_gradients_match_definition() -> None:
    fixed, noise, of_latents, output = (
        normal(3, 5, 4),
        normal(5, 3, seed=1),
        normal(3, 3, 4, seed=2),
        normal(3, 4, seed=3),
    )
    found: list[Tensor] = []
    for d in range(3):
        before = torch.stack([*found, torch.zeros(5, dtype=FLOAT64)], -1)[:, :d]
        found.append(noise[:, d] + torch.tanh(fixed[d] + before @ of_latents[d, :d]) @ output[d])
    torch.testing.assert_close(TorchMap.apply(fixed, noise, of_latents, output), torch.stack(found, -1))
    inputs = tuple(t.requires_grad_() for t in (fixed, noise, of_latents, output))
    assert torch.autograd.gradcheck(TorchMap.apply, inputs)
