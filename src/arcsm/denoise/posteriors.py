"""One-dimensional posteriors of clean values given corrupted ones, with the conditionals of a model as priors.

:mod:`arcsm.denoise.corruptions` builds them, by quadrature or through the flow. The flow's density is known in cells
(:mod:`arcsm.denoise.cells`) and, in its tails or where cells stay too coarse, at nodes that are added where the mass
is.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from arcsm.conditionals.conditionals import Conditionals
from arcsm.conditionals.piecewise import PiecewiseDensity
from arcsm.denoise.cells import Cells, refined_cells

#: ``log_likelihood(y, x)`` in nats of corrupted values ``y (*)`` given clean ones ``x (*)``.
LogLikelihood = Callable[[Tensor, Tensor], Tensor]

#: Initial nodes of a posterior around the corrupted value, in standard deviations of the noise.
LIKELIHOOD_GRID = (-10.0, -6.0, -3.0, -1.5, -0.5, 0.5, 1.5, 3.0, 6.0, 10.0)
_BRIDGE_NODES = 16  # between the cells and a corrupted value outside of them
_ADDED_NODES, _ROUNDS = 32, 3  # of refinement
_SMALL_RISE = 1e-4  # of a log density between two nodes, below which series replace formulas


@dataclass(frozen=True)
class Posterior(ABC):
    """Posteriors of ``N`` values of one dimension, in standardised units."""

    @abstractmethod
    def log_evidence(self) -> Tensor:
        """Return :math:`\\log \\int q(x)\\, p(y \\mid x)\\, dx` in nats, ``(N,)``."""

    @abstractmethod
    def mean(self) -> Tensor:
        """Return the posterior means, ``(N,)``."""

    @abstractmethod
    def icdf(self, u: Tensor) -> Tensor:
        """Return the quantiles ``u (N,)`` in (0, 1), ``(N,)``."""

    def select(self, rows: Tensor) -> Self:
        """Return the posteriors ``rows (M,)``, in this order."""
        selected = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **selected)


@dataclass(frozen=True)
class IntegratedPosterior(Posterior):
    """Posteriors of Gaussian noise by quadrature."""

    density: PiecewiseDensity
    prior: Conditionals  # of the whole batch
    rows: Tensor  # (N,) conditional of each posterior
    y: Tensor  # (N,) corrupted values
    log_likelihood: LogLikelihood

    def log_evidence(self) -> Tensor:
        """Apply Bayes' formula at one point, the node with the largest posterior density."""
        mode = self.density.x.gather(1, self.density.energy.argmax(1, keepdim=True))[:, 0].to(self.y)
        log_prior = self.prior.apply(lambda prior: prior.log_prob(mode), self.rows).double()
        log_posterior = self.density.log_prob(mode.double()[:, None])[:, 0]
        return log_prior + self.log_likelihood(self.y.double(), mode.double()) - log_posterior

    def mean(self) -> Tensor:
        return self.density.mean_and_variance()[0].to(self.y)

    def icdf(self, u: Tensor) -> Tensor:
        return self.density.icdf(u.double()[:, None])[:, 0].to(self.y)

    def select(self, rows: Tensor) -> Self:
        return replace(super().select(rows), density=self.density.select(rows))


@dataclass(frozen=True)
class CellPosterior(Posterior):
    """Posteriors through the flow, whose density is cut into cells with a constant likelihood in each."""

    cells: Cells
    prior: Conditionals  # of the whole batch
    rows: Tensor  # (N,) conditional of each posterior

    def log_evidence(self) -> Tensor:
        return torch.logsumexp(self.cells.log_likelihood + self.cells.width.log(), 1)

    def mean(self) -> Tensor:
        return (self.cells.shares().to(self.cells.x) * self.cells.x).sum(1)

    def icdf(self, u: Tensor) -> Tensor:
        """Map ``u`` to a probability of the prior within its cell, then invert the prior's CDF."""
        cell, fraction = _locate(self.cells.shares(), u[:, None])
        start, width = self.cells.start.gather(1, cell), self.cells.width.gather(1, cell)
        v = (start + fraction * width)[:, 0].clamp(1e-9, 1.0 - 1e-9)
        return self.prior.apply(lambda prior: prior.icdf(v), self.rows).to(self.cells.x)

    def select(self, rows: Tensor) -> Self:
        return replace(super().select(rows), cells=self.cells.select(rows))


@dataclass(frozen=True)
class InterpolatedPosterior(Posterior):
    """Posteriors known at nodes, in double precision, and log-linear between them."""

    x: Tensor  # (N, K) nodes, ascending
    log_density: Tensor  # (N, K) log of prior times likelihood

    def _log_masses(self) -> Tensor:
        """Return the log mass of each cell between nodes, ``(N, K - 1)``."""
        middle, rise = 0.5 * (self.log_density[:, 1:] + self.log_density[:, :-1]), self.log_density.diff(dim=1).abs()
        steep = 0.5 * rise + torch.log(-torch.expm1(-rise.clamp(min=_SMALL_RISE)) / rise.clamp(min=_SMALL_RISE))
        return self.x.diff(dim=1).log() + middle + torch.where(rise < _SMALL_RISE, rise.square() / 24.0, steep)

    def log_evidence(self) -> Tensor:
        return torch.logsumexp(self._log_masses(), 1)

    def mean(self) -> Tensor:
        rise = self.log_density.diff(dim=1)
        small = rise.abs() < _SMALL_RISE
        safe = torch.where(small, _SMALL_RISE, rise)
        centre = torch.where(small, 0.5 + rise / 12.0, -1.0 / torch.expm1(-safe) - 1.0 / safe)
        return (torch.softmax(self._log_masses(), 1) * (self.x[:, :-1] + centre * self.x.diff(dim=1))).sum(1)

    def icdf(self, u: Tensor) -> Tensor:
        return self.icdfs(u[:, None])[:, 0]

    def icdfs(self, u: Tensor) -> Tensor:
        """Return several quantiles ``u (N, M)`` of each posterior, ``(N, M)``."""
        cell, fraction = _locate(torch.softmax(self._log_masses(), 1), u)
        rise = self.log_density.diff(dim=1).gather(1, cell)
        small = rise.abs() < _SMALL_RISE
        safe = torch.where(small, _SMALL_RISE, rise).abs()
        up = 1.0 + torch.log(fraction + (1.0 - fraction) * torch.exp(-safe)) / safe
        down = -torch.log1p(fraction * torch.expm1(-safe)) / safe
        t = torch.where(small, fraction, torch.where(rise > 0.0, up, down))
        return self.x.gather(1, cell) + t.clamp(0.0, 1.0) * self.x.diff(dim=1).gather(1, cell)

    def with_nodes(self, x: Tensor, log_density: Tensor) -> Self:
        nodes, order = torch.cat([self.x, x], 1).sort(1)
        return replace(self, x=nodes, log_density=torch.cat([self.log_density, log_density], 1).gather(1, order))


@dataclass(frozen=True)
class FlowPosterior(Posterior):
    """Posteriors through the flow: in cells, or interpolated in the prior's tails and where cells stay too coarse."""

    in_cells: Tensor  # (N,) whether a posterior is one of ``cellwise``
    index: Tensor  # (N,) its index in ``cellwise`` or ``interpolated``
    cellwise: CellPosterior
    interpolated: InterpolatedPosterior

    def log_evidence(self) -> Tensor:
        return self._merge(lambda posterior, _: posterior.log_evidence())

    def mean(self) -> Tensor:
        return self._merge(lambda posterior, _: posterior.mean()).to(self.cellwise.cells.x)

    def icdf(self, u: Tensor) -> Tensor:
        return self._merge(lambda posterior, rows: posterior.icdf(u[rows])).to(self.cellwise.cells.x)

    def _merge(self, function: Callable[[Posterior, Tensor], Tensor]) -> Tensor:
        """Merge a function of the posteriors of both kinds and their rows ``(n,)`` into ``(N,)``."""
        merged = self.interpolated.x.new_empty(len(self.index))
        for posterior, mask in ((self.cellwise, self.in_cells), (self.interpolated, ~self.in_cells)):
            if len(rows := mask.nonzero()[:, 0]):
                merged[rows] = function(posterior.select(self.index[rows]), rows).to(merged)
        return merged


@dataclass(frozen=True)
class SpikeAndSlabPosterior(Posterior):
    """A spike at the observed value with some probability, otherwise the conditional (the slab).

    Where ``log_density`` is NaN, the observed value has the density of the conditional times the probability that a
    value is not replaced.
    """

    prior: Conditionals  # of the whole batch
    rows: Tensor  # (N,) conditional of each posterior
    y: Tensor  # (N,) observed values
    spike: Tensor  # (N,) probability of the spike
    log_density: Tensor  # (N,) of the observed values
    log_intact: float  # log probability that a value is not replaced

    def log_evidence(self) -> Tensor:
        intact = self.log_density.isnan().nonzero()[:, 0]
        log_prior = self.prior.apply(lambda prior: prior.log_prob(self.y[intact]), self.rows[intact]).double()
        return self.log_density.index_put((intact,), self.log_intact + log_prior)

    def mean(self) -> Tensor:
        uncertain = (self.spike < 1.0).nonzero()[:, 0]
        slab = self.y.index_put((uncertain,), self.prior.apply(_prior_mean, self.rows[uncertain]))
        return torch.lerp(slab, self.y, self.spike.to(self.y))

    def icdf(self, u: Tensor) -> Tensor:
        """Invert a CDF that jumps by ``spike`` at y and is that of the conditional, scaled, on both sides."""
        slab = 1.0 - self.spike
        lower, upper = self._prior_icdf((u - self.spike) / slab), self._prior_icdf(u / slab)
        return torch.minimum(torch.maximum(self.y, lower), upper)

    def _prior_icdf(self, u: Tensor) -> Tensor:
        """Return quantiles of the conditional, infinite for ``u`` outside (0, 1)."""
        inside = ((u > 0.0) & (u < 1.0)).nonzero()[:, 0]
        v = u[inside].to(self.y).clamp(1e-7, 1.0 - 1e-7)
        x = self.prior.apply(lambda prior: prior.icdf(v), self.rows[inside])
        return torch.where(u > 0.5, math.inf, -math.inf).to(self.y).index_put((inside,), x)


@dataclass(frozen=True)
class MissingValuePosterior(Posterior):
    """The observed value, or the conditional where it is missing."""

    prior: Conditionals  # of the whole batch
    rows: Tensor  # (N,) conditional of each posterior
    y: Tensor  # (N,) observed values, NaN where missing

    def log_evidence(self) -> Tensor:
        observed = (~self.y.isnan()).nonzero()[:, 0]
        log_prior = self.prior.apply(lambda prior: prior.log_prob(self.y[observed]), self.rows[observed]).double()
        return torch.zeros_like(self.y, dtype=torch.float64).index_put((observed,), log_prior)

    def mean(self) -> Tensor:
        return self._filled(_prior_mean)

    def icdf(self, u: Tensor) -> Tensor:
        missing = self.y.isnan()
        return self._filled(lambda prior: prior.icdf(u[missing]))

    def _filled(self, function: Callable[[Conditionals], Tensor]) -> Tensor:
        missing = self.y.isnan().nonzero()[:, 0]
        return self.y.index_put((missing,), self.prior.apply(function, self.rows[missing]).to(self.y))


def flow_posterior(prior: Conditionals, y: Tensor, noise_std: float, log_likelihood: LogLikelihood) -> Posterior:
    """Return the posteriors of ``y (N,)`` through the flow, in cells or interpolated.

    A posterior is interpolated if it lies in the tails of its prior, or if its cells stay too coarse.
    """
    cells, in_cells = refined_cells(prior, lambda x, rows: log_likelihood(y[rows, None], x))
    posterior, rows = CellPosterior(cells, prior, all_rows(y)), all_rows(y)
    outside = (~in_cells).nonzero()[:, 0]
    if not len(outside):
        return posterior
    index = rows.index_put((outside,), all_rows(outside))
    interpolated = _interpolate(prior, cells.x[outside], y[outside], outside, noise_std, log_likelihood)
    return FlowPosterior(in_cells, index, posterior, interpolated)


def _interpolate(
    prior: Conditionals, x: Tensor, y: Tensor, rows: Tensor, noise_std: float, log_likelihood: LogLikelihood
) -> InterpolatedPosterior:
    """Interpolate posteriors of ``y (n,)`` given the conditionals ``rows (n,)``, adding nodes where the mass is."""

    def log_density(nodes: Tensor) -> Tensor:
        points, repeated = nodes.to(y).flatten(), rows.repeat_interleave(nodes.shape[1])
        log_prior = prior.apply(lambda part: part.log_prob(points), repeated).double().view_as(nodes)
        return log_prior + log_likelihood(y64, nodes)

    y64, x64 = y[:, None].double(), x.double()
    grid = noise_std * torch.tensor(LIKELIHOOD_GRID, dtype=torch.float64, device=y.device)
    bridge = torch.linspace(0.0, 1.0, _BRIDGE_NODES + 2, dtype=torch.float64, device=y.device)[1:-1]
    nearest = y64.clamp(x64.amin(1, keepdim=True), x64.amax(1, keepdim=True))
    nodes = torch.cat([x64, y64 + grid, nearest + bridge * (y64 - nearest)], 1).sort(1).values
    posterior = InterpolatedPosterior(nodes, log_density(nodes))
    u = (torch.arange(_ADDED_NODES, dtype=torch.float64, device=y.device) + 0.5) / _ADDED_NODES
    for _ in range(_ROUNDS):
        new = posterior.icdfs(u.expand(len(y), -1))
        posterior = posterior.with_nodes(new, log_density(new))
    return posterior


def _locate(shares: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cell of each probability ``u (N, M)`` and how far into its share it lies, from shares ``(N, K)``."""
    cumulative = shares.cumsum(1)
    cell = torch.searchsorted(cumulative, u.to(cumulative).contiguous()).clamp(max=shares.shape[1] - 1)
    rest = (cumulative.gather(1, cell) - u.to(cumulative)) / shares.gather(1, cell).clamp(min=1e-300)
    return cell, (1.0 - rest).clamp(0.0, 1.0)


def _prior_mean(conditionals: Conditionals) -> Tensor:
    if conditionals.method == "flow":
        cells, _ = refined_cells(conditionals, lambda x, _: torch.zeros_like(x))
        return CellPosterior(cells, conditionals, all_rows(cells.x)).mean()
    return conditionals.density(slice(None), conditionals.sigma).mean_and_variance()[0].to(conditionals.projection)


def all_rows(y: Tensor) -> Tensor:
    return torch.arange(len(y), device=y.device)
