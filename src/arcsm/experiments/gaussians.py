"""The networks of the Gaussian experiments (paper, Section 5.1), of comparable size for every method."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from arcsm.contexts import MADE
from arcsm.heads import ScoreHead
from arcsm.model import AutoregressiveModel

STD = 0.1  # of the paper's representative Gaussian, N(0, 0.1^2 I)


def gaussian_rows(count: int, features: int, generator: torch.Generator) -> Tensor:
    """Rows of N(0, 0.1^2 I), ``(N, D)``."""
    return STD * torch.randn(count, features, generator=generator, device=generator.device)


def autoregressive(features: int, hidden: int, context_features: int, head_hidden: int) -> AutoregressiveModel:
    """A MADE of two hidden layers and a score network of one: three between data and scores.

    The head is told nothing of the data's scale (``data_std`` is one): the score that it starts from is a hundredth
    of the true one.
    """
    made = MADE(features, context_features, (hidden, hidden))
    return AutoregressiveModel(made, ScoreHead(context_features, (head_hidden,)))


def joint(features: int, parameters: int) -> nn.Sequential:
    """A perceptron of three hidden layers for the joint score, with about as many parameters as asked for."""
    # 2 H^2 + (2 D + 3) H + D = parameters
    b = 2 * features + 3
    width = max(8, round((-b + (b * b + 8 * (parameters - features)) ** 0.5) / 4))
    sizes = (features, width, width, width)
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*layers, nn.Linear(width, features))


def parameters(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())


def conditional_scores(model: AutoregressiveModel, z: Tensor) -> Tensor:
    """The vector of conditional scores, ``(B, D)``, as a field that other methods can match."""
    return model.head.projected_score(model.head.project(model.context(z)), z)
