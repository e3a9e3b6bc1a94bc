"""Discretised mixtures of logistics: probabilities of grey levels, the likelihood of PixelCNN++."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from arcsm._runtime.sizes import check_size
from arcsm.heads.base import ScoreAndDerivative, Sigma
from arcsm.heads.logistic_mixture import LogisticMixtureHead

_ROUNDING = 1e-6  # a stored level is the left edge of its bin up to a few roundings in single precision


class DiscretisedLogisticMixtureHead(LogisticMixtureHead):
    """A mixture of logistics, integrated over each of ``levels`` equal bins of [-1, 1).

    .. math:: q(x \\mid c) = \\frac{1}{\\Delta} \\sum_j \\pi_j \\big[ F_j(a + \\Delta) - F_j(a) \\big], \\qquad
        a \\le x < a + \\Delta, \\quad \\Delta = 2 / \\mathrm{levels}

    The first and the last bin include the tails. A value less than 1e-6 below an edge counts as the edge. The density
    of dequantised values is uniform within a bin, so it gives the likelihood of the levels:
    ``-log2 q - log2(2 / levels)`` bits (:func:`arcsm.metrics.bits_per_dim`). The head has no score and supports no
    noise. Samples lie anywhere in their bins, so contexts must learn from such values, too: train it with
    ``TrainConfig(objective="mle", standardise="none", dequantise=2 / levels)``, and dequantise rows that are scored, or
    move them to the middle of their bins. The bins are those of data units.

    Example:
        >>> head = DiscretisedLogisticMixtureHead(context_features=4, components=3, levels=2)
        >>> context = torch.zeros(2, 4)
        >>> round(head.log_prob(context, torch.tensor([-0.3, 0.2])).exp().sum().item(), 5)  # two bins of width 1
        1.0
    """

    has_score = False

    def __init__(self, context_features: int = 16, components: int = 10, levels: int = 256) -> None:
        super().__init__(context_features, components, data_std=0.5)
        check_size("DiscretisedLogisticMixtureHead", least=2, levels=levels)
        self.levels = levels

    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> ScoreAndDerivative:
        raise ValueError(
            "head: a DiscretisedLogisticMixtureHead has no score; train it with mle and avoid methods that need scores"
        )

    def projected_log_prob(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        _check_no_noise(sigma)
        log_mass = torch.logsumexp(self._log_masses(projection, self._bin(x)), -1)
        in_range = (x >= -1.0 - _ROUNDING) & (x <= 1.0)
        return torch.where(in_range, log_mass + math.log(0.5 * self.levels), -math.inf)

    def projected_cdf(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        _check_no_noise(sigma)
        bins = self._bin(x)
        log_weights, means, scales = self._mixture(projection, None)
        edge = (bins * (2.0 / self.levels) - 1.0).unsqueeze(-1)
        below = (log_weights.exp() * torch.sigmoid((edge - means) / scales)).sum(-1)
        below = torch.where(bins > 0, below, 0.0)
        fraction = ((x + 1.0) * (0.5 * self.levels) - bins).clamp(0.0, 1.0)
        return (below + fraction * self._log_masses(projection, bins).exp().sum(-1)).clamp(max=1.0)

    def bracket(self, projection: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        ends = projection.new_ones(projection.shape[:-1])
        return -ends, ends

    def are_edges(self, x: Tensor) -> Tensor:
        """Return whether values ``(*)`` are left edges of bins, as stored grey levels are."""
        edge = self._bin(x) * (2.0 / self.levels) - 1.0
        return (x - edge).abs() <= _ROUNDING

    def _bin(self, x: Tensor) -> Tensor:
        """Return the number of each value's bin, as a float, ``(*)``."""
        return torch.floor((x + (1.0 + _ROUNDING)) * (0.5 * self.levels)).clamp(0.0, self.levels - 1.0)

    def _log_masses(self, projection: Tensor, bins: Tensor) -> Tensor:
        """Return the log probability of a bin under each component, times its weight, ``(*, J)``.

        For edges a < b in units of a component, sigmoid(b) - sigmoid(a) = e^b (1 - e^(a - b)) / ((1 + e^a) (1 + e^b))
        avoids cancellation. The outer bins have only one edge.
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
        raise ValueError("noise: a DiscretisedLogisticMixtureHead needs a model without a noise ladder")
