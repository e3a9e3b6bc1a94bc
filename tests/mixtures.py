"""One-dimensional mixtures of Gaussians or logistics in closed form, for tests of integration."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

FLOAT64 = torch.float64


LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(shape, dtype=FLOAT64)


def log_uniform(*shape: int, low: float, high: float) -> Tensor:
    return low * (high / low) ** torch.rand(shape, dtype=FLOAT64)


@dataclass
class Mixtures:
    """``N`` mixtures of Gaussians or logistics with ``(N, J)`` parameters."""

    weights: Tensor
    means: Tensor
    scales: Tensor
    logistic: bool = False

    def rows(self, index: Tensor) -> "Mixtures":
        """Return the mixtures of these rows."""
        return Mixtures(self.weights[index], self.means[index], self.scales[index], self.logistic)

    def _log_terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = (x.unsqueeze(-1) - self.means.unsqueeze(1)) / self.scales.unsqueeze(1)  # (N, K, J)
        shape = -z.abs() - 2.0 * softplus(-z.abs()) if self.logistic else -0.5 * z.square() - LOG_SQRT_2PI
        return shape + (self.weights / self.scales).log().unsqueeze(1), z

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.logsumexp(self._log_terms(x)[0], -1)

    def cdf(self, x: Tensor) -> Tensor:
        z = self._log_terms(x)[1]
        return (self.weights.unsqueeze(1) * (torch.sigmoid(z) if self.logistic else torch.special.ndtr(z))).sum(-1)

    def moments(self) -> tuple[Tensor, Tensor]:
        mean = (self.weights * self.means).sum(-1)
        spread = self.scales.square() * (math.pi**2 / 3.0 if self.logistic else 1.0)
        return mean, (self.weights * (spread + self.means.square())).sum(-1) - mean.square()

    def score(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        part = self.rows(rows)
        log_terms, z = part._log_terms(x)
        posterior, scales = torch.softmax(log_terms, -1), part.scales.unsqueeze(1)
        if self.logistic:
            slopes = -torch.tanh(0.5 * z) / scales
            curvatures = -2.0 * torch.sigmoid(z) * torch.sigmoid(-z) / scales.square()
        else:
            slopes, curvatures = -z / scales, -1.0 / scales.square()
        s = (posterior * slopes).sum(-1)
        return s, (posterior * (curvatures + (slopes - s.unsqueeze(-1)).square())).sum(-1)

    def mode(self) -> Tensor:
        """Return the mean with the largest density, ``(N, 1)``, where errors without an anchor are measured."""
        return self.means.gather(1, self.log_prob(self.means).argmax(1, keepdim=True))


def gaussians(mean: Tensor, sd: Tensor) -> Mixtures:
    return Mixtures(torch.ones_like(mean)[:, None], mean[:, None], sd[:, None])


def random_mixtures(n: int, components: int, logistic: bool) -> Mixtures:
    """Return mixtures within [-20, 20] whose neighbouring components are up to 8 scales apart."""
    scales = log_uniform(n, components, low=0.15, high=0.6)
    gaps = uniform(n, components, high=8.0) * scales
    gaps[:, 0] = uniform(n, low=-8.0, high=8.0)
    weights = uniform(n, components, low=0.05, high=1.0)
    return Mixtures(weights / weights.sum(1, keepdim=True), gaps.cumsum(1), scales, logistic)


def grid(nodes: int, half_width: float = 20.0) -> Tensor:
    return torch.linspace(-half_width, half_width, nodes, dtype=FLOAT64)
