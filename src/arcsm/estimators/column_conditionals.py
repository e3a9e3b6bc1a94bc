"""The conditional of one column of a table: of numbers, of levels, or of numbers with spikes."""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from arcsm.conditionals import Conditionals
from arcsm.estimators.column_types import GRID_TOLERANCE
from arcsm.estimators.mirrors import add_images
from arcsm.estimators.model_columns import ModelColumns

_LEAST_LEAK = 1e-12  # divided by
_LEAK = 1e-6  # probability beyond an end, above which quantiles are mirrored
_MAX_STEPS = 40  # of Newton's method
_CLOSE = 1e-6  # to a probability, at which it takes its last step
_NEAR_END = 0.05  # of a step of a grid
_ROUNDING = 2e-6  # of probabilities: contexts differ after quantiles that are not exact


@dataclass(frozen=True)
class ColumnConditionals:
    """``N`` conditionals of one column. Arguments and results are numbers of the table, ``(N,)``.

    .. math:: F(x) = p_0 F_0(x) + \\sum_{a_k \\le x} p_k

    On a grid, :math:`F_0` is mirrored at the ends of the range: noise has smoothed the density, which would leak out
    otherwise. The numbers beyond them share the probability of an unseen one.

    Attributes:
        columns: The columns of the table.
        column: Which of them it is.
        values: The conditionals :math:`F_0` of levels or of numbers that are no spikes, in standardised units.
        shift, scale: Of the units.
        masses: The probabilities of any number that is no spike and of each spike :math:`a_k`, ``(N, 1 + K)``.
        width: The step of a grid, over which the density of its numbers is averaged; 0 for the density at a point.
        reach: How far beyond the ends of a grid :math:`F_0` has a probability that counts; mirror images of numbers
            farther within are left out.
    """

    columns: ModelColumns
    column: int
    values: Conditionals
    shift: Tensor
    scale: Tensor
    masses: Tensor
    width: float = 0.0
    reach: float = 0.0

    @property
    def nominal(self) -> bool:
        """Whether the column has levels."""
        return self.column in self.columns.levels

    @property
    def spikes(self) -> Tensor:
        """The spikes in ascending order, ``(K,)``; none for most columns."""
        return self.columns.spikes.get(self.column, torch.zeros(0)).to(self.masses)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density of numbers, or the log probability of those that have one.

        These are levels and spikes. A number on a grid has the mean density within its step: its probability divided by
        the step.
        """
        if self.nominal:
            level = self.columns.level(self.column, x)
            found = self.values.log_prob(level.nan_to_num(nan=0.0))
            return torch.where(level.isnan(), 0.0, found) + self.columns.log_share(self.column, x)
        others = self.log_density_of_others(x)
        if not len(self.spikes):
            return others
        spike = self.columns.spike(self.column, x).long()
        of_spike = self.masses.gather(1, spike[:, None])[:, 0].log()
        return torch.where(spike > 0, torch.logaddexp(of_spike, others) if self.width else of_spike, others)

    def log_density_of_others(self, x: Tensor) -> Tensor:
        """Return what :meth:`log_prob` is of numbers that are no spikes."""
        found = self._log_density(x)
        if self._ends is not None:
            found = self._mirrored(x, found)
        return found + self.masses[:, 0].log()

    def _mirrored(self, x: Tensor, log_density: Tensor) -> Tensor:
        """Add the densities of mirror images to those of numbers within the ends; others are unseen ones."""
        assert self._ends is not None
        (low, high), unseen = self._ends, self.columns.log_unseen[self.column]
        ends, reach = torch.tensor(self._ends).to(x)[:, None].expand(-1, len(x)), torch.full_like(x, self.reach)

        def evaluate(x: Tensor, rows: Tensor, half: Tensor | None = None) -> Tensor:
            return replace(self, width=0.0 if half is None else self.width)._log_density(x, rows)

        found = add_images(log_density, evaluate, x, ends, reach, torch.full_like(x, 0.5 * self.width))
        found = found + math.log1p(-math.exp(unseen))
        beyond = ((x <= low) | (x >= high)).nonzero()[:, 0]
        below, above = (self._cdf(torch.full_like(x[beyond], end), beyond) for end in self._ends)
        leak = (below + 1.0 - above).clamp(min=_LEAST_LEAK)
        found[beyond] = log_density[beyond] + unseen - leak.log()
        return found

    @property
    def _ends(self) -> tuple[float, float] | None:
        return self.columns.ends.get(self.column)

    def leak(self, u: float) -> Tensor:
        """Return how far the ``u``-quantile or its counterpart of :math:`F_0` lies beyond an end, ``(N,)``, or 0."""
        assert self._ends is not None
        low, high = self._ends
        below, above = (self._plain_quantiles(self.masses.new_full((len(self.masses),), v)) for v in (u, 1.0 - u))
        return torch.maximum(low - below, above - high).clamp(min=0.0)

    def _log_density(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the log density of :math:`F_0` without mirrors, averaged over a step of a grid; all rows or some."""
        z = (x - self.shift) / self.scale
        half = (0.5 * self.width / self.scale).expand_as(z)

        def log_density(values: Conditionals) -> Tensor:
            return values.log_mean_density(z, half) if self.width else values.log_prob(z)

        return self.values.apply(log_density, rows) - self.scale.log()

    def _cdf(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.values.apply(lambda values: values.cdf((x - self.shift) / self.scale), rows)

    def cdf_of_others(self, x: Tensor) -> Tensor:
        """Return :math:`F_0`, mirrored at the ends of a range."""
        if self._ends is None:
            return self._cdf(x)
        low, high = self._ends
        x = x.clamp(low, high)
        found = self._cdf(x)
        near = (x - low < self.reach).nonzero()[:, 0]
        found[near] -= self._cdf(2.0 * low - x[near], near)
        near = (high - x < self.reach).nonzero()[:, 0]
        found[near] += 1.0 - self._cdf(2.0 * high - x[near], near)
        return torch.where(x <= low, 0.0, torch.where(x >= high, 1.0, found))

    def cdf(self, x: Tensor) -> Tensor:
        """Return the probability of at most ``x``; NaN for a number without a level."""
        if self.nominal:
            level = self.columns.level(self.column, x)
            return torch.where(level.isnan(), torch.nan, self.values.cdf(level.nan_to_num(nan=0.0)))
        if not self.width:
            return self._total_cdf(x, x)
        whole = (x + GRID_TOLERANCE).floor()
        return self._total_cdf(whole, whole + 0.5)

    def middle(self, x: Tensor) -> Tensor:
        """Return the distribution function, in the middle of its step where a number has a probability."""
        if self.nominal:
            level = self.columns.level(self.column, x).nan_to_num(nan=0.0)
            return self.cdf(x) - 0.5 * self.values.log_prob(level).exp()
        return self._total_cdf(x, x) - 0.5 * (self.masses[:, 1:] * (self.spikes == x.unsqueeze(-1))).sum(-1)

    def _total_cdf(self, last_spike: Tensor, last_other: Tensor) -> Tensor:
        """Return the probability of spikes and of other numbers, each up to its own bound."""
        spikes = (self.masses[:, 1:] * (self.spikes <= last_spike.unsqueeze(-1))).sum(-1)
        return self.masses[:, 0] * self.cdf_of_others(last_other) + spikes

    def icdf(self, u: Tensor) -> Tensor:
        """Return the quantiles ``u (N,)``."""
        if self.nominal:
            levels = self.values.icdf((u - _ROUNDING).clamp(min=0.0)).long()
            return self.columns.levels[self.column].to(u)[levels]
        spikes, count = self.spikes, len(self.spikes)
        if not count:
            return self.quantiles_of_others(u)
        low, high = torch.zeros_like(u, dtype=torch.long), torch.full_like(u, count, dtype=torch.long)
        while bool((low < high).any()):  # find the first spike whose distribution function is at least u
            middle = (low + high) // 2
            reached = self.cdf(spikes[middle.clamp(max=count - 1)]) >= u - _ROUNDING
            low, high = torch.where(reached | (low >= high), low, middle + 1), torch.where(reached, middle, high)
        index = low.clamp(max=count - 1).unsqueeze(-1)
        spike, own = spikes[index[:, 0]], self.masses[:, 1:].gather(-1, index)[:, 0]
        before = (self.masses[:, 1:].cumsum(-1) - self.masses[:, 1:]).gather(-1, index)[:, 0]
        before = torch.where(low < count, before, self.masses[:, 1:].sum(-1))
        on_spike = (low < count) & (u >= self.cdf(spike) - own)
        inside = ((u - before) / self.masses[:, 0]).clamp(1e-12, 1.0 - 1e-12)
        return torch.where(on_spike, spike, self.quantiles_of_others(inside))

    def quantiles_of_others(self, u: Tensor) -> Tensor:
        """Return quantiles ``u (N,)`` of the numbers that are no spikes; whole ones if their densities have a width."""
        found = self._plain_quantiles(u)
        if self._ends is None:
            return found
        low, high = self._ends
        near = ((found - low < self.reach) | (high - found < self.reach)).nonzero()[:, 0]
        leaks = torch.stack(
            [
                self._cdf(torch.full_like(near, low).to(u), near),
                1.0 - self._cdf(torch.full_like(near, high).to(u), near),
            ]
        )
        leaking = (leaks > _LEAK).any(0).nonzero()[:, 0]
        near, leaks = near[leaking], leaks[:, leaking] > _LEAK
        found[near] = self._select(near)._mirrored_quantiles(u[near], found[near], leaks)
        return self._whole(found, u) if self.width else found

    def _plain_quantiles(self, u: Tensor) -> Tensor:
        return self.values.icdf(u) * self.scale + self.shift

    def _mirrored_quantiles(self, u: Tensor, start: Tensor, leaks: Tensor) -> Tensor:
        """Return quantiles of the mirrored distribution function by Newton's method, bisected where that leads away.

        ``leaks (2, N)`` says at which ends the densities leak out.
        """
        assert self._ends is not None
        first, last = self._ends
        x, low, high = start.clamp(first, last), torch.full_like(u, first), torch.full_like(u, last)
        rows = torch.arange(len(u), device=u.device)
        for _ in range(_MAX_STEPS):
            if not len(rows):
                break
            at = x[rows]
            density, cdf = self._select(rows)._density_and_cdf(at, leaks[:, rows])
            excess = cdf - u[rows]
            low[rows], high[rows] = torch.where(excess < 0.0, at, low[rows]), torch.where(excess > 0.0, at, high[rows])
            close, to = excess.abs() <= _CLOSE, at - excess / density
            inside = (to > low[rows]) & (to < high[rows])
            x[rows] = torch.where(inside, to, torch.where(close, at, 0.5 * (low[rows] + high[rows])))
            rows = rows[~close]
        return x

    def _density_and_cdf(self, x: Tensor, leaks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the density at points within the ends and its distribution function, mirrored at leaking ends."""
        assert self._ends is not None
        which, rows = leaks.nonzero(as_tuple=True)
        end = torch.tensor(self._ends).to(x)[which]
        points, every = torch.cat([x, 2.0 * end - x[rows]]), torch.cat([torch.arange(len(x), device=x.device), rows])
        log_density, below = self._select(every).values.log_prob_and_cdf((points - self.shift) / self.scale)
        density, cdf = (log_density - self.scale.log()).exp(), below.to(x)
        image = slice(len(x), None)
        return (
            density[: len(x)].index_add(0, rows, density[image]),
            cdf[: len(x)].index_add(0, rows, which.to(cdf) - cdf[image]),
        )

    def _whole(self, found: Tensor, u: Tensor) -> Tensor:
        """Return the first whole numbers up to whose ends the distribution function is at least ``u``, from quantiles.

        It is evaluated once more where the quantile is so close to such an end that it might be on either side.
        """
        assert self._ends is not None
        steps, nearest = found - 0.5, (found - 0.5).round()
        near = ((steps - nearest).abs() < _NEAR_END).nonzero()[:, 0]
        reached = self._select(near).cdf_of_others(nearest[near] + 0.5) >= u[near] - _ROUNDING
        whole = steps.ceil()
        whole[near] = torch.where(reached, nearest[near], nearest[near] + 1.0)
        return whole.clamp(self._ends[0] + 0.5, self._ends[1] - 0.5)

    def _select(self, rows: Tensor) -> Self:
        values = replace(self.values, projection=self.values.projection[rows])
        return replace(self, values=values, masses=self.masses[rows])

    def draws(self, u: Tensor) -> Tensor:
        """Return draws from uniform numbers ``u (N,)``: faster than quantiles, and not monotone in ``u``."""
        if self.nominal:
            return self.icdf(u)
        found = self.draws_of_others((u / self.masses[:, 0]).clamp(1e-12, 1.0 - 1e-12))
        spike = (u.unsqueeze(-1) > self.masses.cumsum(-1)).sum(-1).clamp(max=len(self.spikes))
        return torch.where(spike > 0, torch.cat([self.spikes.new_zeros(1), self.spikes])[spike], found)

    def draws_of_others(self, u: Tensor) -> Tensor:
        """Return draws of the numbers that are no spikes from uniform ones ``u (N,)``; mirrored, hence not monotone."""
        return self.columns.mirrored(self.column, self._plain_quantiles(u))
