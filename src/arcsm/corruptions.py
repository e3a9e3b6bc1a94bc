"""Known corruptions, and the exact one-dimensional posteriors of what they have spoilt.

A corruption says how a noisy value :math:`y_d` came from the true one. With the conditional of a model as the prior,

.. math:: p(x_d \\mid y_d, x_{<d}) \\propto q(x_d \\mid x_{<d})\\, p(y_d \\mid x_d)

is a density of one variable, whose mean, quantiles and normaliser (the evidence) are at hand.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import Tensor

from arcsm.conditionals import Conditionals, starting_nodes
from arcsm.piecewise import PiecewiseDensity
from arcsm.quadrature import integrate

if TYPE_CHECKING:
    from arcsm.model import AutoregressiveModel

#: Where the integration of a posterior starts, in standard deviations of the noise around the noisy value.
_LIKELIHOOD_GRID = (-10.0, -6.0, -3.0, -1.5, -0.5, 0.5, 1.5, 3.0, 6.0, 10.0)
_ROUNDING = 1e-6  # of the range between two extremes
_CLOSEST = 0.01  # of the noise or the grid of the prior, whichever is finer: how near two starting nodes may be
_CELLS = 64  # half the number of cells that a density of the flow is cut into
_FARTHEST = 6.0  # standard deviations of a Gaussian that they reach to
_COARSE = 0.3  # share of a posterior in one of them, from which on it is looked at more closely
_OUTSIDE = 1e-3  # share of a posterior in the outer two, likewise
_ON_THE_WAY = 16  # nodes between the cells and a noisy value that is outside of them
_ADDED, _ROUNDS = 32, 3  # nodes where the mass is, and how often
_LEVEL = 1e-4  # rise of a log density between two nodes that counts as small

# Corruptions ------------------------------------------------------------------------------------------------------


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


class Corruption(Protocol):
    """How a noisy value comes from a true one, independently in each dimension."""

    def standardised(self, shift: float, scale: float) -> Corruption:
        """The same corruption of :math:`(x - \\text{shift}) / \\text{scale}`."""

    def spoil(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Noisy values of true ones ``(*)``."""

    def posterior(self, prior: Conditionals, y: Tensor) -> Posterior:
        """What noisy values ``y (N,)`` say of the true ones, given their conditionals, in standardised units."""


@dataclass(frozen=True)
class GaussianNoise:
    """:math:`y = x + \\sigma\\, n` with :math:`n \\sim \\mathcal{N}(0, 1)`.

    The posterior is :math:`q(x)\\, \\mathcal{N}(y; x, \\sigma^2)` up to a constant. Its score is
    :math:`s(x) + (y - x) / \\sigma^2` and the derivative of that :math:`s'(x) - 1 / \\sigma^2`, so it is integrated
    as any conditional is.

    Arguments:
        sigma: Standard deviation in data units.

    Raises:
        ValueError: for a sigma that is not positive.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma < math.inf:
            raise ValueError(f"sigma: expected a positive number, got {self.sigma}")

    def standardised(self, shift: float, scale: float) -> GaussianNoise:
        return GaussianNoise(self.sigma / scale)

    def spoil(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return x + self.sigma * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)

    def posterior(self, prior: Conditionals, y: Tensor) -> Posterior:
        if prior.method == "flow":
            return self._of_the_flow(prior, y)

        def score(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            s, ds = prior.score_and_derivative(x, rows, prior.sigma)
            return s + (y[rows, None] - x) / self.sigma**2, ds - self.sigma**-2

        accuracy = prior.accuracy
        nodes = self._nodes(prior, y.double())
        density = integrate(score, nodes, None, accuracy.tol, accuracy.max_evaluations)
        prior.unsure += int((~density.converged).sum())
        return _Integrated(density, prior, _all(y), y, self)

    def _of_the_flow(self, prior: Conditionals, y: Tensor) -> Posterior:
        """In the cells of the flow; traced where a few of them have most of the mass, or none is where the mass is."""
        x = _medians(prior)
        weighed = _Weighed(x, self.log_likelihood(y[:, None], x).double(), prior, _all(y))
        mass = weighed.mass()
        in_cells = (mass.amax(1) < _COARSE) & (mass[:, 0] + mass[:, -1] < _OUTSIDE)
        coarse = (~in_cells).nonzero()[:, 0]
        if not len(coarse):
            return weighed
        place = _all(y).index_put((coarse,), _all(coarse))
        return _Either(in_cells, place, weighed, self._traced(prior, x[coarse], y[coarse], coarse))

    def _traced(self, prior: Conditionals, x: Tensor, y: Tensor, rows: Tensor) -> _Traced:
        """Posteriors of the conditionals ``rows (n,)``, at nodes that are added where the mass is."""

        def log_density(nodes: Tensor) -> Tensor:
            asked, each = nodes.to(y).flatten(), rows.repeat_interleave(nodes.shape[1])
            of_prior = ask(prior, each, lambda some: some.log_prob(asked)).double().view_as(nodes)
            return of_prior + self.log_likelihood(y[:, None].double(), nodes)

        y_, x_ = y[:, None].double(), x.double()
        grid = self.sigma * torch.tensor(_LIKELIHOOD_GRID, dtype=torch.float64, device=y.device)
        way = torch.linspace(0.0, 1.0, _ON_THE_WAY + 2, dtype=torch.float64, device=y.device)[1:-1]
        nearest = y_.clamp(x_.amin(1, keepdim=True), x_.amax(1, keepdim=True))
        nodes = torch.cat([x_, y_ + grid, nearest + way * (y_ - nearest)], 1).sort(1).values
        traced = _Traced(nodes, log_density(nodes))
        u = (torch.arange(_ADDED, dtype=torch.float64, device=y.device) + 0.5) / _ADDED
        for _ in range(_ROUNDS):
            more = traced.quantiles(u.expand(len(y), -1))
            traced = traced.with_nodes(more, log_density(more))
        return traced

    def log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        """:math:`\\log \\mathcal{N}(y; x, \\sigma^2)` in nats."""
        return -0.5 * ((y - x) / self.sigma).square() - math.log(self.sigma) - 0.5 * math.log(2.0 * math.pi)

    def _nodes(self, prior: Conditionals, y: Tensor) -> Tensor:
        """Starting nodes of the prior and of the likelihood, in one row each, none too near another: ``(N, K)``."""
        of_prior = starting_nodes(prior.head, prior.projection, prior.sigma)
        of_noise = y[:, None] + self.sigma * torch.tensor(_LIKELIHOOD_GRID, dtype=y.dtype, device=y.device)
        nodes = torch.cat([of_prior, of_noise], 1).sort(1).values
        apart = _CLOSEST * of_prior.diff(dim=1).amin(1, keepdim=True).clamp(max=self.sigma)
        offsets = apart * torch.arange(nodes.shape[1], device=y.device)
        return (nodes - offsets).cummax(1).values + offsets


@dataclass(frozen=True)
class SaltAndPepper:
    """With a given probability a value is replaced, by ``low`` or ``high`` with equal chances.

    A noisy value between the two is the true one. One at an extreme is either true, or replaced, and then the true
    value is distributed as :math:`q(x_d \\mid x_{<d})`. The odds are those of :math:`(1 - p)\\, m` to :math:`p / 2`,
    with :math:`m` the mass of :math:`q` within ``width`` of the extreme, and beyond it.

    Arguments:
        probability: Share :math:`p` of the values that are replaced.
        low: Values up to it count as pepper, in data units.
        high: Values from it on count as salt.
        width: How far inside an extreme a value of the model still counts as being there. It should cover a level of
            grey and, with a noise ladder, the smallest noise a few times.

    Raises:
        ValueError: for a probability that is not between 0 and 1, low not below high, or a width that is not positive.
    """

    probability: float
    low: float = -1.0
    high: float = 1.0
    width: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 < self.probability < 1.0:
            raise ValueError(f"probability: expected a number between 0 and 1, got {self.probability}")
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low, high: expected finite numbers, low below high, got {self.low} and {self.high}")
        if not 0.0 < self.width < math.inf:
            raise ValueError(f"width: expected a positive number, got {self.width}")

    def standardised(self, shift: float, scale: float) -> SaltAndPepper:
        low, high = (self.low - shift) / scale, (self.high - shift) / scale
        return SaltAndPepper(self.probability, low, high, self.width / scale)

    @classmethod
    def of_images(cls, probability: float, levels: int, smallest_noise: float = 0.0) -> Self:
        """That of images in [-1, 1) whose values are in the middle of their grey level.

        Arguments:
            probability: Share of the values that are replaced.
            levels: Number of grey levels.
            smallest_noise: That of the model's ladder, in data units, which its density has on top.
        """
        edge = 1.0 - 1.5 / levels
        return cls(probability, -edge, edge, width=2.0 / levels + 2.0 * smallest_noise)

    def spoil(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        u = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        extreme = torch.where(u < 0.5 * self.probability, x.new_tensor(self.low), x.new_tensor(self.high))
        return torch.where(u < self.probability, extreme, x)

    def suspect(self, y: Tensor) -> Tensor:
        """Which values are at an extreme, up to rounding, boolean, of the shape of ``y``."""
        slack = _ROUNDING * (self.high - self.low)  # single precision, standardised
        return (y <= self.low + slack) | (y >= self.high - slack)

    def posterior(self, prior: Conditionals, y: Tensor) -> Posterior:
        rows = self.suspect(y).nonzero()[:, 0]
        low = y[rows] < 0.5 * (self.low + self.high)
        edge = torch.where(low, y.new_tensor(self.low + self.width), y.new_tensor(self.high - self.width))
        below = ask(prior, rows, lambda extreme: extreme.cdf(edge))
        true = (1.0 - self.probability) * torch.where(low, below, 1.0 - below).double()
        replaced = 0.5 * self.probability
        kept = torch.ones_like(y, dtype=torch.float64).index_put((rows,), true / (true + replaced))
        log_density = torch.full_like(kept, math.nan)
        log_density[rows] = torch.log((true + replaced) / self.width)
        return _KeptOrDrawn(prior, _all(y), y, kept, log_density, math.log1p(-self.probability))


# Posteriors -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Integrated(Posterior):
    """A posterior of Gaussian noise by quadrature."""

    density: PiecewiseDensity
    prior: Conditionals
    rows: Tensor  # (N,) whose posteriors these are
    y: Tensor
    noise: GaussianNoise

    def log_evidence(self) -> Tensor:
        """Bayes' formula at one point: the node where the posterior is largest."""
        mode = self.density.x.gather(1, self.density.energy.argmax(1, keepdim=True))[:, 0].to(self.y)
        log_prior = ask(self.prior, self.rows, lambda prior: prior.log_prob(mode)).double()
        log_posterior = self.density.log_prob(mode.double()[:, None])[:, 0]
        return log_prior + self.noise.log_likelihood(self.y.double(), mode.double()) - log_posterior

    def mean(self) -> Tensor:
        return self.density.mean_and_variance()[0].to(self.y)

    def quantile(self, u: Tensor) -> Tensor:
        return self.density.quantile(u.double()[:, None])[:, 0].to(self.y)

    def select(self, rows: Tensor) -> Posterior:
        density = PiecewiseDensity(**{name: value[rows] for name, value in vars(self.density).items()})
        return replace(self, density=density, rows=self.rows[rows], y=self.y[rows])


@dataclass(frozen=True)
class _Weighed(Posterior):
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
class _Traced(Posterior):
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

    def with_nodes(self, x: Tensor, log_density: Tensor) -> _Traced:
        """With more nodes ``(N, M)``."""
        nodes, order = torch.cat([self.x, x], 1).sort(1)
        return _Traced(nodes, torch.cat([self.log_density, log_density], 1).gather(1, order))

    def select(self, rows: Tensor) -> Posterior:
        return _Traced(self.x[rows], self.log_density[rows])


@dataclass(frozen=True)
class _Either(Posterior):
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
class _KeptOrDrawn(Posterior):
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
class Lost:
    """Values are known exactly, or not at all (NaN): the corruption of a table with missing values.

    With :func:`arcsm.denoise.particles` the candidates are draws of the missing values given all the known ones, and
    the evidence is the density of those. Candidates are whole, so that any context will do.
    """

    def standardised(self, shift: float, scale: float) -> Lost:
        return self

    def spoil(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The values as they are: which are lost is not for this to say."""
        return x

    def posterior(self, prior: Conditionals, y: Tensor) -> Posterior:
        return _KnownOrDrawn(prior, _all(y), y)


@dataclass(frozen=True)
class _KnownOrDrawn(Posterior):
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


# What they share --------------------------------------------------------------------------------------------------


def _mean(conditionals: Conditionals) -> Tensor:
    """Means of conditionals, ``(N,)``."""
    if conditionals.method == "flow":
        x = _medians(conditionals)
        return x @ _edges(x).diff().to(x)
    return conditionals.density(slice(None), conditionals.sigma).mean_and_variance()[0].to(conditionals.projection)


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


def standardised_at(corruption: Corruption, model: AutoregressiveModel, d: int) -> Corruption:
    """The corruption of a dimension in the model's standardised units."""
    return corruption.standardised(float(model.shift[d]), float(model.scale[d]))


def ask(conditionals: Conditionals, rows: Tensor, question: Callable[[Conditionals], Tensor]) -> Tensor:
    """What the conditionals ``rows (n,)`` answer, ``(n,)``; what they fail to integrate counts for all."""
    if not len(rows):
        return conditionals.projection.new_zeros(0)
    some = replace(conditionals, projection=conditionals.projection[rows], unsure=0)
    answer = question(some)
    conditionals.unsure += some.unsure
    return answer


def _all(y: Tensor) -> Tensor:
    """The numbers of all values of ``y (N,)``."""
    return torch.arange(len(y), device=y.device)
