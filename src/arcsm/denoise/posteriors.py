"""Posteriors of single values: what noisy values say of the true ones, given the conditionals of a model as priors.

The posteriors of :mod:`arcsm.denoise.corruptions` are found by quadrature, or through the flow, whose density is known
in cells and, where these are too coarse, at nodes that are put where the mass is.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from arcsm.conditionals.conditionals import Conditionals
from arcsm.conditionals.piecewise import PiecewiseDensity

#: Where the noisy value ``y (*)`` says that true ones ``x (*)`` are: log likelihoods in nats.
LogLikelihood = Callable[[Tensor, Tensor], Tensor]

#: Where a posterior is looked at first, in standard deviations of the noise around the noisy value.
LIKELIHOOD_GRID = (-10.0, -6.0, -3.0, -1.5, -0.5, 0.5, 1.5, 3.0, 6.0, 10.0)
_CELLS = 64  # half the number of cells that a density of the flow is cut into
_FARTHEST = 6.0  # standard deviations of a Gaussian that they reach to
_COARSE = 0.3  # share of a posterior in one of them, from which on it is looked at more closely
_OUTSIDE = 1e-3  # share of a posterior in the outer two, likewise
_ON_THE_WAY = 16  # nodes between the cells and a noisy value that is outside of them
_ADDED, _ROUNDS = 32, 3  # nodes where the mass is, and how often
_LEVEL = 1e-4  # rise of a log density between two nodes that counts as small


class Posterior(ABC):
    """Posteriors of ``N`` values of one dimension, in standardised units."""

    @abstractmethod
    def log_evidence(self) -> Tensor:
        """:math:`\\log \\int q(x)\\, p(y \\mid x)\\, dx` in nats, ``(N,)``."""

    @abstractmethod
    def mean(self) -> Tensor:
        """``(N,)``."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The inverse of the distribution function at ``u (N,)`` in (0, 1), ``(N,)``."""

    @abstractmethod
    def select(self, rows: Tensor) -> Posterior:
        """The posteriors numbered ``rows (M,)``, in this order."""


# Their kinds -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Integrated(Posterior):
    """A posterior of Gaussian noise by quadrature."""

    density: PiecewiseDensity
    prior: Conditionals
    rows: Tensor  # (N,) whose posteriors these are
    y: Tensor
    likelihood: LogLikelihood

    def log_evidence(self) -> Tensor:
        """Bayes' formula at one point: the node where the posterior is largest."""
        mode = self.density.x.gather(1, self.density.energy.argmax(1, keepdim=True))[:, 0].to(self.y)
        log_prior = ask(self.prior, self.rows, lambda prior: prior.log_prob(mode)).double()
        log_posterior = self.density.log_prob(mode.double()[:, None])[:, 0]
        return log_prior + self.likelihood(self.y.double(), mode.double()) - log_posterior

    def mean(self) -> Tensor:
        return self.density.mean_and_variance()[0].to(self.y)

    def quantile(self, u: Tensor) -> Tensor:
        return self.density.quantile(u.double()[:, None])[:, 0].to(self.y)

    def select(self, rows: Tensor) -> Posterior:
        density = PiecewiseDensity(**{name: value[rows] for name, value in vars(self.density).items()})
        return replace(self, density=density, rows=self.rows[rows], y=self.y[rows])


@dataclass(frozen=True)
class WeightedPosterior(Posterior):
    """A density of the flow in cells, each with the likelihood of its median."""

    x: Tensor  # (N, M) medians
    log_likelihood: Tensor  # (N, M)
    prior: Conditionals
    rows: Tensor  # (N,) whose posteriors these are

    def _log_weights(self) -> Tensor:
        return self.log_likelihood + _edges(self.x).diff().log()

    def mass(self) -> Tensor:
        """Shares of the cells, ``(N, M)``."""
        return torch.softmax(self._log_weights(), 1)

    def log_evidence(self) -> Tensor:
        return torch.logsumexp(self._log_weights(), 1)

    def mean(self) -> Tensor:
        return (self.mass().to(self.x) * self.x).sum(1)

    def quantile(self, u: Tensor) -> Tensor:
        """Within a cell the likelihood counts as constant, so that its part of ``u`` is one of the prior's."""
        mass = self.mass()
        below = mass.cumsum(1)
        wanted, edges = u.to(below)[:, None], _edges(self.x)
        cell = torch.searchsorted(below, wanted).clamp(max=mass.shape[1] - 1)
        left = 1.0 - (below.gather(1, cell) - wanted) / mass.gather(1, cell).clamp(min=1e-300)
        of_prior = edges[cell] + left.clamp(0.0, 1.0) * edges.diff()[cell]
        inside = of_prior[:, 0].clamp(1e-9, 1.0 - 1e-9)
        return ask(self.prior, self.rows, lambda prior: prior.icdf(inside)).to(self.x)

    def select(self, rows: Tensor) -> Posterior:
        return replace(self, x=self.x[rows], log_likelihood=self.log_likelihood[rows], rows=self.rows[rows])


@dataclass(frozen=True)
class TracedPosterior(Posterior):
    """A density that is known at nodes, in double precision, and log-linear between them."""

    x: Tensor  # (N, K) ascending
    log_density: Tensor  # (N, K) up to the evidence

    def _rises(self) -> Tensor:
        return self.log_density.diff(dim=1)

    def _log_masses(self) -> Tensor:
        """Of the cells between nodes, ``(N, K - 1)``."""
        middle, rise = 0.5 * (self.log_density[:, 1:] + self.log_density[:, :-1]), self._rises().abs()
        steep = 0.5 * rise + torch.log(-torch.expm1(-rise.clamp(min=_LEVEL)) / rise.clamp(min=_LEVEL))
        return self.x.diff(dim=1).log() + middle + torch.where(rise < _LEVEL, rise.square() / 24.0, steep)

    def log_evidence(self) -> Tensor:
        return torch.logsumexp(self._log_masses(), 1)

    def mean(self) -> Tensor:
        rise = self._rises()
        safe = torch.where(rise.abs() < _LEVEL, _LEVEL, rise)
        centre = torch.where(rise.abs() < _LEVEL, 0.5 + rise / 12.0, -1.0 / torch.expm1(-safe) - 1.0 / safe)
        places = self.x[:, :-1] + centre * self.x.diff(dim=1)
        return (torch.softmax(self._log_masses(), 1) * places).sum(1)

    def quantile(self, u: Tensor) -> Tensor:
        return self.quantiles(u[:, None])[:, 0]

    def quantiles(self, u: Tensor) -> Tensor:
        """The inverse of the distribution function at ``u (N, M)``, ``(N, M)``."""
        mass = torch.softmax(self._log_masses(), 1)
        below = mass.cumsum(1)
        cell = torch.searchsorted(below, u.to(below).contiguous()).clamp(max=mass.shape[1] - 1)
        inside = 1.0 - ((below.gather(1, cell) - u) / mass.gather(1, cell).clamp(min=1e-300)).clamp(0.0, 1.0)
        rise = self._rises().gather(1, cell)
        safe = torch.where(rise.abs() < _LEVEL, _LEVEL, rise)
        up = 1.0 + torch.log(inside + (1.0 - inside) * torch.exp(-safe.abs())) / safe.abs()
        down = -torch.log1p(inside * torch.expm1(-safe.abs())) / safe.abs()
        way = torch.where(rise.abs() < _LEVEL, inside, torch.where(rise > 0.0, up, down))
        return self.x.gather(1, cell) + way.clamp(0.0, 1.0) * self.x.diff(dim=1).gather(1, cell)

    def with_nodes(self, x: Tensor, log_density: Tensor) -> TracedPosterior:
        """With more nodes ``(N, M)``."""
        nodes, order = torch.cat([self.x, x], 1).sort(1)
        return TracedPosterior(nodes, torch.cat([self.log_density, log_density], 1).gather(1, order))

    def select(self, rows: Tensor) -> Posterior:
        return TracedPosterior(self.x[rows], self.log_density[rows])


@dataclass(frozen=True)
class MixedPosterior(Posterior):
    """Posteriors of two kinds, in any order."""

    of_first: Tensor  # (N,) whether a posterior is of the first kind
    place: Tensor  # (N,) its number among those of its kind
    first: Posterior
    second: Posterior

    def log_evidence(self) -> Tensor:
        return self._joined(lambda posterior, _: posterior.log_evidence())

    def mean(self) -> Tensor:
        return self._joined(lambda posterior, _: posterior.mean())

    def quantile(self, u: Tensor) -> Tensor:
        return self._joined(lambda posterior, rows: posterior.quantile(u[rows]))

    def _joined(self, answer: Callable[[Posterior, Tensor], Tensor]) -> Tensor:
        """What both kinds answer of their rows ``(n,)``, ``(N,)``."""
        parts = [
            (rows, answer(posterior.select(self.place[rows]), rows))
            for posterior, chosen in ((self.first, self.of_first), (self.second, ~self.of_first))
            if len(rows := chosen.nonzero()[:, 0])
        ]
        joined = parts[0][1].new_empty(len(self.place))
        for rows, answers in parts:
            joined[rows] = answers.to(joined)
        return joined

    def select(self, rows: Tensor) -> Posterior:
        return replace(self, of_first=self.of_first[rows], place=self.place[rows])


@dataclass(frozen=True)
class SpikePosterior(Posterior):
    """The noisy value itself with probability ``kept (N,)``, a draw from the conditional otherwise."""

    prior: Conditionals
    rows: Tensor  # (N,) whose posteriors these are
    y: Tensor
    kept: Tensor
    log_density: Tensor  # (N,) of the noisy value; NaN where it is that of the conditional
    log_true: float  # log probability that a value is not replaced

    def log_evidence(self) -> Tensor:
        of_prior = self.log_density.isnan().nonzero()[:, 0]
        log_prior = ask(self.prior, self.rows[of_prior], lambda prior: prior.log_prob(self.y[of_prior])).double()
        return self.log_density.index_put((of_prior,), self.log_true + log_prior)

    def mean(self) -> Tensor:
        doubtful = (self.kept < 1.0).nonzero()[:, 0]
        drawn = self.y.index_put((doubtful,), ask(self.prior, self.rows[doubtful], _mean))
        return torch.lerp(drawn, self.y, self.kept.to(self.y))

    def quantile(self, u: Tensor) -> Tensor:
        """Mass ``kept`` sits on y; below and above it the distribution function is that of the conditional, scaled."""
        drawn = 1.0 - self.kept
        lower, upper = self._prior_quantile((u - self.kept) / drawn), self._prior_quantile(u / drawn)
        return torch.minimum(torch.maximum(self.y, lower), upper)

    def _prior_quantile(self, u: Tensor) -> Tensor:
        """Quantiles of the conditional; infinite for ``u`` outside (0, 1), where there are none."""
        inside = ((u > 0.0) & (u < 1.0)).nonzero()[:, 0]
        wanted = u[inside].to(self.y).clamp(1e-7, 1.0 - 1e-7)
        found = ask(self.prior, self.rows[inside], lambda prior: prior.icdf(wanted))
        return torch.where(u > 0.5, math.inf, -math.inf).to(self.y).index_put((inside,), found)

    def select(self, rows: Tensor) -> Posterior:
        chosen = {name: getattr(self, name)[rows] for name in ("rows", "y", "kept", "log_density")}
        return replace(self, **chosen)


@dataclass(frozen=True)
class PartlyKnownPosterior(Posterior):
    """The value itself where it is known, else a draw from the conditional."""

    prior: Conditionals
    rows: Tensor  # (N,) whose posteriors these are
    y: Tensor  # NaN where it is not known

    def log_evidence(self) -> Tensor:
        known = (~self.y.isnan()).nonzero()[:, 0]
        density = ask(self.prior, self.rows[known], lambda prior: prior.log_prob(self.y[known]))
        return torch.zeros_like(self.y, dtype=torch.float64).index_put((known,), density.double())

    def mean(self) -> Tensor:
        return self._filled(_mean)

    def quantile(self, u: Tensor) -> Tensor:
        unknown = self.y.isnan()
        return self._filled(lambda prior: prior.icdf(u[unknown]))

    def _filled(self, question: Callable[[Conditionals], Tensor]) -> Tensor:
        unknown = self.y.isnan().nonzero()[:, 0]
        return self.y.index_put((unknown,), ask(self.prior, self.rows[unknown], question).to(self.y))

    def select(self, rows: Tensor) -> Posterior:
        return replace(self, rows=self.rows[rows], y=self.y[rows])


# Through the flow ---------------------------------------------------------------------------------------------------


def through_the_flow(prior: Conditionals, y: Tensor, width: float, log_likelihood: LogLikelihood) -> Posterior:
    """Posteriors of ``y (N,)``, whose noise is of a width, in the cells of the flow.

    They are traced where a few of the cells have most of the mass, or none is where the mass is.
    """
    x = _medians(prior)
    weighed = WeightedPosterior(x, log_likelihood(y[:, None], x).double(), prior, all_of(y))
    mass = weighed.mass()
    in_cells = (mass.amax(1) < _COARSE) & (mass[:, 0] + mass[:, -1] < _OUTSIDE)
    coarse = (~in_cells).nonzero()[:, 0]
    if not len(coarse):
        return weighed
    place = all_of(y).index_put((coarse,), all_of(coarse))
    return MixedPosterior(in_cells, place, weighed, _traced(prior, x[coarse], y[coarse], coarse, width, log_likelihood))


def _traced(
    prior: Conditionals, x: Tensor, y: Tensor, rows: Tensor, width: float, log_likelihood: LogLikelihood
) -> TracedPosterior:
    """Posteriors of ``y (n,)`` given the conditionals ``rows (n,)``, at nodes that are added where the mass is."""

    def log_density(nodes: Tensor) -> Tensor:
        asked, each = nodes.to(y).flatten(), rows.repeat_interleave(nodes.shape[1])
        of_prior = ask(prior, each, lambda some: some.log_prob(asked)).double().view_as(nodes)
        return of_prior + log_likelihood(wide_y, nodes)

    wide_y, wide_x = y[:, None].double(), x.double()
    grid = width * torch.tensor(LIKELIHOOD_GRID, dtype=torch.float64, device=y.device)
    way = torch.linspace(0.0, 1.0, _ON_THE_WAY + 2, dtype=torch.float64, device=y.device)[1:-1]
    nearest = wide_y.clamp(wide_x.amin(1, keepdim=True), wide_x.amax(1, keepdim=True))
    nodes = torch.cat([wide_x, wide_y + grid, nearest + way * (wide_y - nearest)], 1).sort(1).values
    traced = TracedPosterior(nodes, log_density(nodes))
    u = (torch.arange(_ADDED, dtype=torch.float64, device=y.device) + 0.5) / _ADDED
    for _ in range(_ROUNDS):
        more = traced.quantiles(u.expand(len(y), -1))
        traced = traced.with_nodes(more, log_density(more))
    return traced


def _edges(like: Tensor) -> Tensor:
    """Edges in (0, 1) of the cells that a density of the flow is cut into, ``(M + 1,)``.

    Half of them are evenly spaced by probability, so that no mode is missed; the other half by distance, if the
    density were a Gaussian, so that the tails are there.
    """
    by_distance = torch.special.ndtr(torch.linspace(-_FARTHEST, _FARTHEST, _CELLS + 1, dtype=torch.float64))[1:-1]
    by_probability = torch.linspace(0.0, 1.0, _CELLS + 2, dtype=torch.float64)
    return torch.cat([by_probability, by_distance]).sort().values.to(like.device)


def _medians(conditionals: Conditionals) -> Tensor:
    """The medians of the cells of densities of the flow, ``(N, M)``: those at the largest noise, carried down."""
    edges = _edges(conditionals.projection)
    middle = (0.5 * (edges[1:] + edges[:-1])).expand(len(conditionals), -1)
    top = conditionals.density(slice(None), conditionals.path[0]).quantile(middle, tolerance=1e-4)
    each = replace(conditionals, projection=conditionals.projection.repeat_interleave(middle.shape[1], 0))
    x = top.to(each.projection).flatten()
    for high, low in itertools.pairwise(conditionals.path):
        first = each.score(x, high)
        x = x + 0.5 * (high - low) * (high * first + low * each.score(x + (high - low) * high * first, low))
    return x.view_as(middle)


# What they share --------------------------------------------------------------------------------------------------


def _mean(conditionals: Conditionals) -> Tensor:
    """Means of conditionals, ``(N,)``."""
    if conditionals.method == "flow":
        x = _medians(conditionals)
        return x @ _edges(x).diff().to(x)
    return conditionals.density(slice(None), conditionals.sigma).mean_and_variance()[0].to(conditionals.projection)


def ask(conditionals: Conditionals, rows: Tensor, question: Callable[[Conditionals], Tensor]) -> Tensor:
    """What the conditionals ``rows (n,)`` answer, ``(n,)``; what they fail to integrate counts for all."""
    if not len(rows):
        return conditionals.projection.new_zeros(0)
    some = replace(conditionals, projection=conditionals.projection[rows], unconverged=0)
    answer = question(some)
    conditionals.unconverged += some.unconverged
    return answer


def all_of(y: Tensor) -> Tensor:
    """The numbers of all values of ``y (N,)``."""
    return torch.arange(len(y), device=y.device)
