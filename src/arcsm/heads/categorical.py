"""Probabilities of levels: the conditional of a nominal column."""

import torch
from torch import Tensor, nn

from arcsm._runtime.sizes import check_layers, check_size
from arcsm.heads.base import NormalisedHead, ScoreAndDerivative, Sigma


class CategoricalHead(NormalisedHead):
    """A probability for each of ``levels`` levels, by a softmax.

    .. math:: q(x = k \\mid c) = \\frac{e^{w_k \\cdot c + b_k}}{\\sum_j e^{w_j \\cdot c + b_j}},
        \\qquad k = 0, \\dots, \\mathrm{levels} - 1

    Values are the numbers of levels. The log probability is a log mass, not a density, and noise does not apply to it.
    The distribution function is cumulative in the order of the levels. There is no score, so every objective trains
    this head by likelihood.

    Arguments:
        context_features: Size :math:`C` of the contexts.
        levels: Number of levels, at least 1.

    Example:
        >>> head = CategoricalHead(context_features=4, levels=3)
        >>> round(head.log_prob(torch.zeros(3, 4), torch.arange(3.0)).exp().sum().item(), 5)
        1.0
    """

    discrete = True
    has_score = False

    def __init__(self, context_features: int = 16, levels: int = 2) -> None:
        super().__init__()
        check_size("CategoricalHead", context_features=context_features, levels=levels)
        check_layers("CategoricalHead", context_features, (), levels)
        self.context_features, self.levels = context_features, levels
        self.logits = nn.Linear(context_features, levels)
        with torch.no_grad():  # start near the uniform distribution
            self.logits.weight.mul_(0.1)
            self.logits.bias.zero_()

    def project(self, context: Tensor) -> Tensor:
        """Return the log probability of every level, ``(*, levels)``."""
        return torch.log_softmax(self.logits(context), -1)

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
