"""Small models for the tests of objectives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, GaussianHead, Head, LogisticMixtureHead, NoiseLadder, ScoreHead

HEADS: dict[str, Callable[[], Head]] = {
    "score": lambda: ScoreHead(4, (8, 8)),
    "gaussian": lambda: GaussianHead(4),
    "mixture": lambda: LogisticMixtureHead(4, 3),
}


def build(head: Head, features: int = 3, noise: NoiseLadder | None = None) -> AutoregressiveModel:
    return AutoregressiveModel(MADE(features, 4, (12,)), head, noise)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients(loss: Tensor, model: AutoregressiveModel) -> list[Tensor]:
    """Return the gradient by each parameter, zero if the loss does not depend on it."""
    results = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(results, model.parameters(), strict=True)]
