"""Data and networks of the Gaussian experiments (paper, Section 5.1), of comparable size for every method."""

import itertools

import torch
from torch import Tensor, nn

from arcsm import MADE, AutoregressiveModel, ScoreHead
from arcsm.experiments.base import Count, Settings, parameter_count

STD = 0.1  # of the paper's Gaussian, N(0, 0.1^2 I)


class GaussianNetworks(Settings):
    """Sizes of the networks and of a batch. The paper gives three hidden layers; the sizes are ours."""

    hidden: Count = 128
    context_features: Count = 4
    head_hidden: Count = 32
    batch: Count = 128

    def build(self, features: int) -> AutoregressiveModel:
        """Return a MADE with two hidden layers and a score head with one.

        The head does not know the scale of the data (``data_std`` is one): its first score is 100 times too small.
        """
        made = MADE(features, self.context_features, (self.hidden, self.hidden))
        return AutoregressiveModel(made, ScoreHead(self.context_features, (self.head_hidden,)))

    def build_joint(self, features: int) -> nn.Sequential:
        """Return a perceptron with three hidden layers for the joint score, with about as many parameters."""
        parameters = parameter_count(self.build(features))  # = 2 H^2 + (2 D + 3) H + D
        b = 2 * features + 3
        width = max(8, round((-b + (b * b + 8 * (parameters - features)) ** 0.5) / 4))
        sizes = (features, width, width, width)
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
        return nn.Sequential(*layers, nn.Linear(width, features))


def gaussian_rows(count: int, features: int, generator: torch.Generator) -> Tensor:
    """Draw rows of N(0, 0.1^2 I), ``(N, D)``."""
    return STD * torch.randn(count, features, generator=generator, device=generator.device)


def conditional_scores(network: nn.Module, z: Tensor) -> Tensor:
    """Return the score field of either kind of network, ``(B, D)``."""
    if isinstance(network, AutoregressiveModel):
        return network.head.projected_score(network.head.project(network.context(z)), z)
    return network(z)
