"""The autoregressive map in torch against a plain loop."""

from __future__ import annotations

import torch
from torch import Tensor

from arcsm.implicit.networks.autoregressive_map import TorchMap
from small_vaes import FLOAT64, normal


def test_map_and_gradients_match_definition() -> None:
    inner, noise = normal(3, 5, 4), normal(5, 3, seed=1)
    latent_weight, output_weight = normal(3, 3, 4, seed=2), normal(3, 4, seed=3)
    u: list[Tensor] = []
    for d in range(3):
        earlier = torch.stack([*u, torch.zeros(5, dtype=FLOAT64)], -1)[:, :d]
        u.append(noise[:, d] + torch.tanh(inner[d] + earlier @ latent_weight[d, :d]) @ output_weight[d])
    torch.testing.assert_close(TorchMap.apply(inner, noise, latent_weight, output_weight), torch.stack(u, -1))
    inputs = tuple(t.requires_grad_() for t in (inner, noise, latent_weight, output_weight))
    assert torch.autograd.gradcheck(TorchMap.apply, inputs)
