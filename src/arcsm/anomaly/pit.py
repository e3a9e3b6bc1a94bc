"""Statistics of a row's probability integral transforms (PIT values), which are uniform for inliers.

Larger values of ``KS``, ``AD``, ``tails`` and ``squares`` mean more outlying; ``lag 1`` is zero on average.
"""

import math

import torch
from torch import Tensor


def kolmogorov_smirnov(u: Tensor) -> Tensor:
    """Return the largest distance between the empirical CDF of each row ``(N, D)`` and the uniform CDF, ``(N,)``.

    Example:
        >>> kolmogorov_smirnov(torch.tensor([[0.25, 0.75]]))
        tensor([0.2500])
    """
    ordered, count = u.sort(1).values, u.shape[1]
    steps = torch.arange(count + 1, dtype=u.dtype, device=u.device) / count
    return torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).amax(1)


def anderson_darling(u: Tensor) -> Tensor:
    """Return the Anderson-Darling statistic of each row ``(N, D)``, ``(N,)``, which is sensitive to both ends.

    .. math:: A^2 = -D - \\frac1D \\sum_{i=1}^{D} (2 i - 1) \\big[\\log u_{(i)} + \\log(1 - u_{(D + 1 - i)})\\big]
    """
    ordered, count = _clamp(u).sort(1).values, u.shape[1]
    weights = 2.0 * torch.arange(1, count + 1, dtype=ordered.dtype, device=u.device) - 1.0
    return -count - (weights * (torch.log(ordered) + torch.log1p(-ordered.flip(1)))).mean(1)


def tail_surprise(u: Tensor) -> Tensor:
    """Return the mean of :math:`-\\log(4 u (1 - u))` of each row ``(N, D)``, ``(N,)``; expected: 2 - log 4."""
    u = _clamp(u)
    return -(math.log(4.0) + torch.log(u) + torch.log1p(-u)).mean(1)


def squared_normal_scores(u: Tensor) -> Tensor:
    """Return :math:`\\sum_d \\Phi^{-1}(u_d)^2` of each row ``(N, D)``, ``(N,)``: chi-squared with ``D`` degrees."""
    return normal_scores(u).square().sum(1)


def lag_one_autocorrelation(u: Tensor) -> Tensor:
    """Return the autocorrelation at lag one of each row's normal scores ``(N, D)``, ``(N,)``.

    .. math:: \\sum_d z_d z_{d+1} \\Big/ \\sum_d z_d^2, \\qquad z_d = \\Phi^{-1}(u_d)
    """
    z = normal_scores(u)
    return (z[:, :-1] * z[:, 1:]).sum(1) / z.square().sum(1).clamp(min=torch.finfo(z.dtype).tiny)


def normal_scores(u: Tensor) -> Tensor:
    """Return :math:`\\Phi^{-1}(u)`, finite for values that have been rounded to 0 or 1."""
    return torch.special.ndtri(_clamp(u))


def pit_statistics(u: Tensor) -> dict[str, Tensor]:
    """Return all statistics of this module by name, ``(N,)`` each.

    PIT values ``(N, D)`` are from :meth:`AutoregressiveModel.cdf`, the columns in the order of the chain rule.
    """
    statistics = {
        "KS": kolmogorov_smirnov(u),
        "AD": anderson_darling(u),
        "tails": tail_surprise(u),
        "squares": squared_normal_scores(u),
    }
    return statistics if u.shape[1] < 2 else {**statistics, "lag 1": lag_one_autocorrelation(u)}


def _clamp(u: Tensor) -> Tensor:
    eps = torch.finfo(u.dtype).eps
    return u.clamp(eps, 1.0 - eps)
