"""Data and networks of the Gaussian experiments (paper, Section 5.1), of comparable size for every method."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from arcsm.contexts import MADE
from arcsm.heads import ScoreHead
from arcsm.model import AutoregressiveModel

STD = 0.1  # of the paper's Gaussian, N(0, 0.1^2 I)


def gaussian_rows(count: int, features: int, generator: torch.Generator) -> Tensor:
    """Draw rows of N(0, 0.1^2 I), ``(N, D)``."""
    return STD * torch.randn(count, features, generator=generator, device=generator.device)


def autoregressive_network(features: int, hidden: int, context_features: int, head_hidden: int) -> AutoregressiveModel:
    """Return a MADE with two hidden layers and a score head with one.

    The head does not know the scale of the data (``data_std`` is one): it starts from a hundredth of the true score.
    """
    made = MADE(features, context_features, (hidden, hidden))
    return AutoregressiveModel(made, ScoreHead(context_features, (head_hidden,)))


def joint_network(features: int, parameters: int) -> nn.Sequential:
    """Return a perceptron with three hidden layers for the joint score, with about as many parameters as given."""
    # 2 H^2 + (2 D + 3) H + D = parameters
    b = 2 * features + 3
    width = max(8, round((-b + (b * b + 8 * (parameters - features)) ** 0.5) / 4))
    sizes = (features, width, width, width)
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*layers, nn.Linear(width, features))


def conditional_scores(network: nn.Module, z: Tensor) -> Tensor:
    """Return the score field of either kind of network, ``(B, D)``."""
    if isinstance(network, AutoregressiveModel):
        return network.head.projected_score(network.head.project(network.context(z)), z)
    scores: Tensor = network(z)
    return scores
