"""Probabilities of levels: the conditional of a nominal column."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm._runtime.sizes import check_layers, check_size
from arcsm.fourier_features import cosine_basis
from arcsm.heads.base import NormalisedHead, ScoreAndDerivative, Sigma


class CategoricalHead(NormalisedHead):
    """A probability for each of ``levels`` levels, by a softmax.

    .. math:: q(x = k \\mid c) = (1 - \\varepsilon) \\frac{p_k^{1 - \\tau} e^{\\tau (w_k \\cdot c + b_k)}}
        {\\sum_j p_j^{1 - \\tau} e^{\\tau (w_j \\cdot c + b_j)}} + \\varepsilon\\, p_k,
        \\qquad k = 0, \\dots, \\mathrm{levels} - 1

    By default :math:`\\tau = 1` and :math:`\\varepsilon = 0`. :meth:`smooth` sets other values, which draw the
    probabilities towards a prior :math:`p`: before the training, so that the prior explains what the contexts do not,
    or after it.

    Values are the numbers of levels. The log probability is a log mass, not a density, and noise does not apply to it.
    The distribution function is cumulative in the order of the levels. There is no score, so every objective trains
    this head by likelihood.

    Arguments:
        context_features: Size :math:`C` of the contexts.
        levels: Number of levels, at least 1.
        ordered: Whether the levels have an order, as numbers do. If so, the learned weights are :math:`v_j` in
            :math:`w_k = \\sum_j v_j \\cos(\\pi j (k + \\tfrac12) / \\mathrm{levels}) / (1 + j)^2`, so that weights that
            vary slowly along the levels are learned first. At most 2048 levels.

    Example:
        >>> head = CategoricalHead(context_features=4, levels=3)
        >>> round(head.log_prob(torch.zeros(3, 4), torch.arange(3.0)).exp().sum().item(), 5)
        1.0
    """

    discrete = True
    has_score = False

    def __init__(self, context_features: int = 16, levels: int = 2, ordered: bool = False) -> None:
        super().__init__()
        check_size("CategoricalHead", context_features=context_features, levels=levels)
        check_layers("CategoricalHead", context_features, (), levels)
        self.context_features, self.levels, self.ordered = context_features, levels, ordered
        self.logits = nn.Linear(context_features, levels)
        self.register_buffer("basis", cosine_basis(levels) if ordered else None, persistent=False)
        self.register_buffer("sharpness", torch.ones(()))
        self.register_buffer("share", torch.zeros(()))
        self.register_buffer("prior", torch.full((levels,), 1.0 / levels))
        with torch.no_grad():  # start near the uniform distribution
            self.logits.weight.mul_(0.1)
            self.logits.bias.zero_()

    basis: Tensor | None
    sharpness: Tensor
    share: Tensor
    prior: Tensor

    @torch.no_grad()
    def smooth(self, sharpness: float | None = None, share: float | None = None, prior: Tensor | None = None) -> None:
        """Set how far probabilities are smoothed; what is not given stays as it is.

        Arguments:
            sharpness: The weight :math:`\\tau` of the logits, positive; that of the log prior is :math:`1 - \\tau`.
            share: The share :math:`\\varepsilon` of the prior, in [0, 1).
            prior: The probabilities :math:`p` of the levels, ``(levels,)``. Default: all are equal.
        """
        if sharpness is not None and not sharpness > 0.0:
            raise ValueError(f"sharpness: expected a positive number, got {sharpness}")
        if share is not None and not 0.0 <= share < 1.0:
            raise ValueError(f"share: expected a number from 0 to below 1, got {share}")
        if prior is not None and (prior.shape != self.prior.shape or not bool((prior > 0.0).all())):
            raise ValueError(f"prior: expected {self.levels} positive probabilities, got {tuple(prior.shape)}")
        self.sharpness.fill_(self.sharpness if sharpness is None else sharpness)
        self.share.fill_(self.share if share is None else share)
        self.prior.copy_(self.prior if prior is None else prior / prior.sum())

    def softmax_parameters(self) -> tuple[Tensor, Tensor]:
        """Return weights :math:`w_k` and biases :math:`b_k` of the levels, ``(levels, C)`` and ``(levels,)``."""
        weight = self.logits.weight if self.basis is None else self.basis @ self.logits.weight
        return weight, self.logits.bias

    def project(self, context: Tensor) -> Tensor:
        """Return the log probability of every level, ``(*, levels)``."""
        return self._project(context, *self.softmax_parameters())

    def log_prob_by(self, context: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return :meth:`log_prob` with other :meth:`softmax_parameters`."""
        return self.projected_log_prob(self._project(context, weight, bias), x)

    def _project(self, context: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        log_prior = torch.log(self.prior)
        logits = F.linear(context, weight, bias)
        log_softmax = torch.log_softmax(torch.lerp(log_prior, logits.to(log_prior), self.sharpness), -1)
        return torch.logaddexp(log_softmax + torch.log1p(-self.share), torch.log(self.share) + log_prior)

    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> ScoreAndDerivative:
        raise ValueError("head: a CategoricalHead has no score; train it with mle, or with csm or dsm in a MixedHead")

    def projected_log_prob(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        level = x.round().clamp(0, self.levels - 1)
        log_prob = _gather(projection, level)
        return torch.where(level == x, log_prob, -torch.inf)

    def projected_cdf(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        level = x.floor().clamp(-1, self.levels - 1)
        below = projection.exp().cumsum(-1)
        cdf = _gather(below / below[..., -1:], level.clamp(min=0))
        return torch.where(level < 0, 0.0, cdf)

    def projected_icdf(self, projection: Tensor, u: Tensor, sigma: Sigma = None) -> Tensor:
        below = projection.exp().cumsum(-1)
        return (below / below[..., -1:] < u.unsqueeze(-1)).sum(-1).clamp(max=self.levels - 1).to(u)

    def bracket(self, projection: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        ends = projection.new_ones(projection.shape[:-1])
        return -ends, self.levels * ends


def _gather(table: Tensor, level: Tensor) -> Tensor:
    """Return the entries of ``table (*, K)`` at levels ``(*)``, which broadcast."""
    shape = torch.broadcast_shapes(table.shape[:-1], level.shape)
    return table.expand(*shape, -1).gather(-1, level.long().expand(shape).unsqueeze(-1))[..., 0]
