"""Parts as a user defines them outside the package."""

from __future__ import annotations

import torch
from torch import Tensor

import arcsm
from arcsm import MADE, AutoregressiveModel, ScoreHead


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


class UnregisteredMADE(MADE):
    """A MADE that no file can name."""
