"""Small heads for tests: one of every kind, and the arguments that their tests share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from arcsm import GaussianHead, Head, LogisticMixtureHead, PlainScoreHead, ScoreHead
from arcsm.heads.base import Sigma

FLOAT64 = torch.float64
H = TypeVar("H", bound=Head)
SIGMAS = (None, 0.3, "tensor")  #: noise levels; see :func:`noise_level`
SCORE_HEADS: tuple[dict[str, Any], ...] = (
    {"hidden_features": (8,)},
    {"hidden_features": (8, 6)},
    {"hidden_features": (8, 8, 8), "residual": True},
    {"hidden_features": (8, 8, 8, 8), "residual": True, "sinusoids": 3},
    {"hidden_features": (8, 6, 4, 5), "sinusoids": 1, "max_frequency": 5.0},
    {"hidden_features": (8,), "sinusoids": 4, "data_std": 0.5},
)


def score_head(seed: int = 0, strength: float = 3.0, **arguments: Any) -> ScoreHead:
    """Return a score head in double precision whose random weights are larger than at initialisation."""
    torch.manual_seed(seed)
    head = ScoreHead(context_features=3, **arguments).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_().mul_(strength / math.sqrt(parameter.shape[-1]))
    return head


def _seeded(make: Callable[[], H]) -> Callable[[], H]:
    def build() -> H:
        torch.manual_seed(0)
        return make().double()

    return build


HEADS: dict[str, Callable[[], Head]] = {
    **{f"score-{i}": lambda arguments=arguments: score_head(**arguments) for i, arguments in enumerate(SCORE_HEADS)},
    "plain": _seeded(lambda: PlainScoreHead(3, (8, 6))),
    "plain, tanh": _seeded(lambda: PlainScoreHead(3, (8, 6), "tanh")),
    "gaussian": _seeded(lambda: GaussianHead(3)),
    "mixture": _seeded(lambda: LogisticMixtureHead(3, components=4)),
}


class TwoNormals(ScoreHead):
    """The score of two normal distributions with weights 0.7 and 0.3, whatever the context."""

    def __init__(self, modes: tuple[float, float], deviation: float) -> None:
        super().__init__(1, (2,))
        self.modes, self.deviation = torch.tensor(modes, dtype=FLOAT64), deviation

    def projected_score_and_derivative(
        self, projection: Tensor, x: Tensor, sigma: Sigma = None
    ) -> tuple[Tensor, Tensor]:
        x = x + 0.0 * projection[..., 0]
        variance = self.deviation**2 + (0.0 if sigma is None else sigma**2)
        slopes = (self.modes - x.double().unsqueeze(-1)) / variance  # (*, 2), towards each mode
        share = torch.softmax(torch.tensor([0.7, 0.3]).log() - 0.5 * variance * slopes.square(), -1)
        s = (share * slopes).sum(-1)
        return s, (share * slopes.square()).sum(-1) - s.square() - 1.0 / variance


def noise_level(sigma: float | str | None, shape: tuple[int, ...]) -> float | Tensor | None:
    """Return a noise level of :data:`SIGMAS`, with one value for each point for ``"tensor"``."""
    return sigma if sigma is None or isinstance(sigma, float) else torch.rand(shape, dtype=FLOAT64) + 0.05


def differentiate(value: Tensor, by: Tensor) -> Tensor:
    """Return the derivative of each value by its own input."""
    return torch.autograd.grad(value.sum(), by)[0]
