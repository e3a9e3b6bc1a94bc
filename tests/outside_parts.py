"""Parts as a user defines them outside the package."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import arcsm
from arcsm import MADE, AutoregressiveModel, ConditionNet, ScoreHead


class BentMADE(MADE):
    """A MADE whose contexts pass through a tanh."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.tanh(super().forward(x, condition))


class NarrowScoreHead(ScoreHead):
    """A score head under its own name."""


def doubled_csm(
    model: AutoregressiveModel, x: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    return 2.0 * arcsm.objectives.csm(model, x, 0.3, condition=condition, generator=generator)


class Perceptron(ConditionNet):
    """A network for conditions of labels and vectors."""

    def __init__(self, classes: int = 3, features: int = 2, width: int = 6) -> None:
        super().__init__()
        self.classes, self.features, self.width = classes, features, width
        self.of_class, self.of_vector = nn.Embedding(classes, width), nn.Linear(features, width)
        self.output = nn.Linear(width, width)

    def forward(self, condition: Mapping[str, Tensor]) -> Tensor:
        hidden = self.of_class(condition["classes"]) + self.of_vector(condition["vector"])
        return self.output(torch.tanh(hidden))


class UnregisteredMADE(MADE):
    """A MADE that no file can name."""
