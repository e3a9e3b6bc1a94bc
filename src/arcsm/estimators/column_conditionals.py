"""The conditional of one column of a table: of numbers, of levels, or of numbers with spikes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from arcsm.conditionals import Conditionals


@dataclass(frozen=True)
class ColumnConditionals:
    """``N`` conditionals of one column, in the numbers of the table.

    .. math:: F(x) = p_0 F_0(x) + \\sum_{a_k \\le x} p_k

    Attributes:
        values: The conditionals :math:`F_0` of levels or of numbers that are no spikes, in standardised units.
        shift, scale: Of the units.
        spikes: The spikes :math:`a_k` in ascending order, ``(K,)``; none for most columns.
        masses: The probabilities of any other number and of each spike, ``(N, 1 + K)``.
        level_numbers: The number of each level of a nominal column, whose densities and distribution functions take
            levels; ``None`` for other columns.
    """

    values: Conditionals
    shift: Tensor
    scale: Tensor
    spikes: Tensor
    masses: Tensor
    level_numbers: Tensor | None = None

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density of numbers ``(N,)`` that are no spikes, or the log probability of levels."""
        return self.values.log_prob((x - self.shift) / self.scale) - self.scale.log() + self.masses[:, 0].log()

    def log_mean_density(self, x: Tensor, width: float) -> Tensor:
        """Return log densities of numbers ``(N,)`` that are no spikes, averaged over steps of a width around them."""
        z, half = (x - self.shift) / self.scale, 0.5 * width / self.scale
        found = self.values.log_mean_density(z, half.expand_as(z)) if width else self.values.log_prob(z)
        return found - self.scale.log() + self.masses[:, 0].log()

    def cdf(self, x: Tensor) -> Tensor:
        """Return the distribution function at numbers ``(N,)``."""
        below = (self.masses[:, 1:] * (self.spikes <= x.unsqueeze(-1))).sum(-1)
        return self.masses[:, 0] * self.values.cdf((x - self.shift) / self.scale) + below

    def middle(self, x: Tensor) -> Tensor:
        """Return the distribution function at numbers ``(N,)``, in the middle of its step where they have a mass."""
        if self.values.head.discrete:
            return self.cdf(x) - 0.5 * self.values.log_prob(x).exp()
        return self.cdf(x) - 0.5 * (self.masses[:, 1:] * (self.spikes == x.unsqueeze(-1))).sum(-1)

    def icdf(self, u: Tensor) -> Tensor:
        """Return the quantiles ``u (N,)``."""
        if self.level_numbers is not None:
            return self.level_numbers[self.values.icdf(u).long()].to(u)
        if not len(self.spikes):
            return self.values.icdf(u) * self.scale + self.shift
        count = len(self.spikes)
        low, high = torch.zeros_like(u, dtype=torch.long), torch.full_like(u, count, dtype=torch.long)
        while bool((low < high).any()):  # find the first spike whose distribution function is at least u
            middle = (low + high) // 2
            reached = self.cdf(self.spikes[middle.clamp(max=count - 1)]) >= u
            low, high = torch.where(reached | (low >= high), low, middle + 1), torch.where(reached, middle, high)
        before = (self.masses[:, 1:].cumsum(-1) - self.masses[:, 1:]).gather(-1, low.clamp(max=count - 1).unsqueeze(-1))
        before = torch.where(low < count, before[:, 0], self.masses[:, 1:].sum(-1))
        spike = self.spikes[low.clamp(max=count - 1)]
        own = self.masses[:, 1:].gather(-1, low.clamp(max=count - 1).unsqueeze(-1))[:, 0]
        on_spike = (low < count) & (u >= self.cdf(spike) - own)
        inside = ((u - before) / self.masses[:, 0]).clamp(1e-12, 1.0 - 1e-12)
        return torch.where(on_spike, spike, self.values.icdf(inside) * self.scale + self.shift)
