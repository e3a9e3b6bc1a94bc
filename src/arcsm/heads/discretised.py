"""A discretised mixture of logistics: probabilities of grey levels, the likelihood of PixelCNN++."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from arcsm.heads.base import Sigma
from arcsm.heads.logistic_mixture import LogisticMixtureHead

_ROUNDING = 1e-3  # of a bin: a level is the left edge of its bin, up to this


class DiscretisedLogisticMixtureHead(LogisticMixtureHead):
    """What a mixture of logistics gives to each of ``levels`` equal bins of [-1, 1), spread evenly over the bin.

    .. math:: q(x \\mid c) = \\frac{1}{\\Delta} \\sum_j \\pi_j \\big[ F_j(a + \\Delta) - F_j(a) \\big], \\qquad
        a \\le x < a + \\Delta, \\quad \\Delta = 2 / \\mathrm{levels}

    The first and the last bin also take what lies beyond them. It is a density of the dequantised values, the same all
    over a bin, so its likelihood is one of the levels: ``-log2 q - log2(2 / levels)`` bits
    (:func:`arcsm.metrics.bits_per_dim`). It has no score to speak of, and no noise.

    References:
        PixelCNN++ (Salimans et al., 2017), https://arxiv.org/abs/1701.05517

    Arguments:
        context_features: Size :math:`C` of the contexts.
        components: Number of logistics.
        levels: Number of bins.

    Example:
        >>> head = DiscretisedLogisticMixtureHead(context_features=4, components=3, levels=2)
        >>> context = torch.zeros(2, 4)
        >>> round(head.log_prob(context, torch.tensor([-0.3, 0.2])).exp().sum().item(), 5)  # two bins of width 1
        1.0
    """

    def __init__(self, context_features: int = 16, components: int = 10, levels: int = 256) -> None:
        super().__init__(context_features, components)
        if levels < 2:
            raise ValueError(f"levels: expected at least 2, got {levels}")
        self.levels = levels
        with torch.no_grad():  # components start side by side over [-1, 1]
            _, spread, scale = self.parameters_of.bias.unflatten(0, (3, components)).unbind(0)
            spread.mul_(0.5)
            scale.sub_(math.log(2.0))

    has_score = False

    def config(self) -> dict[str, Any]:
        return {**super().config(), "levels": self.levels}

    def projected_score_and_derivative(
        self, projection: Tensor, x: Tensor, sigma: Sigma = None
    ) -> tuple[Tensor, Tensor]:
        raise ValueError(
            "head: a DiscretisedLogisticMixtureHead has no score; what needs one is not for it (its objective is mle)"
        )

    def projected_log_prob(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        _check_no_noise(sigma)
        log_mass = torch.logsumexp(self._log_masses(projection, self._bin(x)), -1)
        return torch.where(self._inside(x), log_mass + math.log(0.5 * self.levels), -math.inf)

    def projected_cdf(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        _check_no_noise(sigma)
        bins = self._bin(x)
        log_weights, means, scales = self._mixture(projection, None)
        edge = (bins * (2.0 / self.levels) - 1.0).unsqueeze(-1)
        below = (log_weights.exp() * torch.sigmoid((edge - means) / scales)).sum(-1)
        below = torch.where(bins > 0, below, 0.0)
        part = ((x + 1.0) * (0.5 * self.levels) - bins).clamp(0.0, 1.0)
        return (below + part * self._log_masses(projection, bins).exp().sum(-1)).clamp(max=1.0)

    def bracket(self, projection: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        ends = projection.new_ones(projection.shape[:-1])
        return -ends, ends

    def _inside(self, x: Tensor) -> Tensor:
        return (x >= -1.0 - _ROUNDING / self.levels) & (x <= 1.0)

    def _bin(self, x: Tensor) -> Tensor:
        """The number of the bin of each value, as a float, ``(*)``."""
        return torch.floor((x + 1.0) * (0.5 * self.levels) + _ROUNDING).clamp(0.0, self.levels - 1.0)

    def _log_masses(self, projection: Tensor, bins: Tensor) -> Tensor:
        """Log mass of each component in a bin, weights included, ``(*, J)``.

        With a and b the edges in units of a component, sigmoid(b) - sigmoid(a) is e^b (1 - e^(a - b)) over
        (1 + e^a) (1 + e^b), which has no difference of near equals; the outer bins are one-sided.
        """
        log_weights, means, scales = self._mixture(projection, None)
        width = 2.0 / self.levels
        edge = (bins * width - 1.0).unsqueeze(-1)
        a, b = (edge - means) / scales, (edge + width - means) / scales
        middle = b + torch.log(-torch.expm1(-width / scales)) - F.softplus(b) - F.softplus(a)
        first, last = (bins == 0.0).unsqueeze(-1), (bins == self.levels - 1.0).unsqueeze(-1)
        log_mass = torch.where(first, -F.softplus(-b), torch.where(last, -F.softplus(a), middle))
        return log_weights + log_mass


def _check_no_noise(sigma: Sigma) -> None:
    if sigma is not None:
        raise ValueError("noise: a DiscretisedLogisticMixtureHead is one of exact levels, without a noise ladder")
