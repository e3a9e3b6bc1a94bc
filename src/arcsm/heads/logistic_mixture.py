"""Mixtures of logistics: the conditionals of the paper's maximum-likelihood baselines (PixelCNN++)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm._runtime.sizes import check_layers, check_size
from arcsm.heads.base import NormalisedHead, ScoreAndDerivative, Sigma, variance

_MIN_LOG_SCALE = -7.0  # as in PixelCNN++
_MAX_LOG_SCALE = 15.0  # beyond any data: keeps contexts far from the training data from overflowing


class LogisticMixtureHead(NormalisedHead):
    """A mixture of ``components`` logistic distributions with parameters affine in the context.

    .. math:: q_\\sigma(x \\mid c) = \\sum_j \\pi_j\\, \\mathrm{Logistic}\\big(x;\\, \\mu_j,\\,
        \\sqrt{s_j^2 + 3 \\sigma^2 / \\pi^2}\\big)

    A logistic of scale :math:`s` has variance :math:`\\pi^2 s^2 / 3`, so noise adds exactly its variance to each
    component. Score, derivative, density and CDF all belong to this normalised mixture. It has the first two moments
    of the convolution with Gaussian noise, which itself has no closed form.

    References:
        PixelCNN++ (Salimans et al., 2017), https://arxiv.org/abs/1701.05517

    Arguments:
        context_features: Size :math:`C` of the contexts.
        components: Number :math:`J` of logistic distributions. They start side by side, within two ``data_std`` of
            zero.
        data_std: Standard deviation of the data; 1 for standardised data.

    Raises:
        ValueError: If a size is below one, or the scale is not positive and finite.

    Example:
        >>> head = LogisticMixtureHead(context_features=4, components=3)
        >>> s, ds = head.score_and_derivative(torch.zeros(5, 4), torch.zeros(5))
        >>> s.shape, ds.shape
        (torch.Size([5]), torch.Size([5]))
    """

    def __init__(self, context_features: int = 16, components: int = 10, data_std: float = 1.0) -> None:
        super().__init__()
        check_size(type(self).__name__, context_features=context_features, components=components)
        check_layers(type(self).__name__, context_features, (), 3 * components)
        if not 0.0 < data_std < math.inf:
            raise ValueError(f"{type(self).__name__}: expected a positive finite scale, got data_std={data_std}")
        self.context_features, self.components, self.data_std = context_features, components, float(data_std)
        self.parameters_of = nn.Linear(context_features, 3 * components)
        with torch.no_grad():
            spread = 2.0 * data_std * torch.linspace(-1.0, 1.0, components) if components > 1 else torch.zeros(1)
            scale = torch.full((components,), math.log(2.0 * data_std / (components + 1)))
            self.parameters_of.bias.copy_(torch.cat([torch.zeros(components), spread, scale]))

    def project(self, context: Tensor) -> Tensor:
        return self.parameters_of(context)

    def _mixture(self, projection: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor, Tensor]:
        """Return log weights, means and scales, each ``(*, J)``."""
        logits, means, raw = projection.unflatten(-1, (3, self.components)).unbind(-2)
        log_scales = F.softplus(raw - _MIN_LOG_SCALE) + _MIN_LOG_SCALE
        scales = torch.exp(log_scales.clamp(max=_MAX_LOG_SCALE))
        if sigma is not None:
            noise = variance(sigma.unsqueeze(-1) if isinstance(sigma, Tensor) else sigma)
            scales = torch.sqrt(scales.square() + 3.0 * noise / math.pi**2)
        return torch.log_softmax(logits, -1), means, scales

    def _log_terms(self, projection: Tensor, x: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor, Tensor]:
        """Return :math:`\\log \\pi_j f_j(x)`, :math:`z_j = (x - \\mu_j) / s_j` and the scales, each ``(*, J)``."""
        log_weights, means, scales = self._mixture(projection, sigma)
        z = (x.unsqueeze(-1) - means) / scales
        return log_weights - z.abs() - 2.0 * F.softplus(-z.abs()) - torch.log(scales), z, scales

    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> ScoreAndDerivative:
        log_terms, z, scales = self._log_terms(projection, x, sigma)
        posterior = torch.softmax(log_terms, -1)
        slopes = -torch.tanh(0.5 * z) / scales  # score of each component
        curvatures = -2.0 * torch.sigmoid(z) * torch.sigmoid(-z) / scales.square()
        score = (posterior * slopes).sum(-1)
        spread = (posterior * (slopes - score.unsqueeze(-1)).square()).sum(-1)
        return score, (posterior * curvatures).sum(-1) + spread

    def projected_log_prob(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        return torch.logsumexp(self._log_terms(projection, x, sigma)[0], -1)

    def projected_cdf(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        log_weights, means, scales = self._mixture(projection, sigma)
        return (log_weights.exp() * torch.sigmoid((x.unsqueeze(-1) - means) / scales)).sum(-1).clamp(max=1.0)

    def bracket(self, projection: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        _, means, scales = self._mixture(projection, sigma)
        return (means - 25.0 * scales).amin(-1), (means + 25.0 * scales).amax(-1)
