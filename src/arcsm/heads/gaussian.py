"""Gaussian conditionals: the MADE baseline of the paper's Figure 4."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm._runtime.sizes import check_size
from arcsm.heads.base import NormalisedHead, ScoreAndDerivative, Sigma, variance

_MAX_LOG_STD = 15.0  # beyond any data: keeps contexts far from the training data from overflowing
_MIN_LOG_STD = -7.0


class GaussianHead(NormalisedHead):
    """A Gaussian whose mean and standard deviation are affine in the context.

    .. math:: q_\\sigma(x \\mid c) = \\mathcal{N}(x;\\, \\mu(c),\\, \\tau(c)^2 + \\sigma^2)

    With noise, it is exactly the convolution of the noiseless conditional with :math:`\\mathcal{N}(0, \\sigma^2)`.

    Example:
        >>> head = GaussianHead(context_features=4)
        >>> head.log_prob(torch.zeros(3, 4), torch.zeros(3)).shape
        torch.Size([3])
    """

    def __init__(self, context_features: int = 16) -> None:
        super().__init__()
        check_size("GaussianHead", context_features=context_features)
        self.context_features = context_features
        self.parameters_of = nn.Linear(context_features, 2)
        with torch.no_grad():
            self.parameters_of.bias.zero_()

    def project(self, context: Tensor) -> Tensor:
        return self.parameters_of(context)

    def moments(self, projection: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        """Return mean and variance at a noise level, each ``(*)``."""
        mean, raw = projection.unbind(-1)
        log_std = F.softplus(raw - _MIN_LOG_STD) + _MIN_LOG_STD  # a smooth minimum; the identity far above it
        return mean, torch.exp(2.0 * log_std.clamp(max=_MAX_LOG_STD)) + variance(sigma)

    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> ScoreAndDerivative:
        mean, var = self.moments(projection, sigma)
        score = (mean - x) / var
        return score, torch.where(score.isnan(), score, -1.0 / var)  # NaN for a missing value

    def projected_log_prob(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        mean, var = self.moments(projection, sigma)
        return -0.5 * ((x - mean).square() / var + torch.log(var) + math.log(2.0 * math.pi))

    def projected_cdf(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        mean, var = self.moments(projection, sigma)
        return 0.5 * torch.erfc((mean - x) / torch.sqrt(2.0 * var))  # ndtr would lose the lower tail

    def bracket(self, projection: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        mean, var = self.moments(projection, sigma)
        return mean - 10.0 * var.sqrt(), mean + 10.0 * var.sqrt()
