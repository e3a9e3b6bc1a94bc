"""Known corruptions and the exact one-dimensional posteriors of corrupted values.

A corruption is a likelihood :math:`p(y_d \\mid x_d)`. With the conditional of a model as the prior,

.. math:: p(x_d \\mid y_d, x_{<d}) \\propto q(x_d \\mid x_{<d})\\, p(y_d \\mid x_d)

is a density of one variable, so its mean, quantiles and normaliser (the evidence) can be computed.
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from arcsm.conditionals.conditionals import Conditionals
from arcsm.conditionals.nodes import starting_nodes
from arcsm.conditionals.quadrature import integrate
from arcsm.denoise import posteriors
from arcsm.model import AutoregressiveModel

_ROUNDING = 1e-6  # relative to the range between the extremes
_MIN_SPACING = 0.01  # of starting nodes, relative to the noise or the grid of the prior, whichever is finer


class Corruption(Protocol):
    """A likelihood of corrupted values given clean ones, independent in each dimension."""

    def standardised(self, shift: float, scale: float) -> Self:
        """Return the same corruption of :math:`(x - \\text{shift}) / \\text{scale}`."""

    def corrupt(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return corrupted values of clean ones ``(*)``."""

    def posterior(self, prior: Conditionals, y: Tensor) -> posteriors.Posterior:
        """Return the posteriors of corrupted values ``y (N,)`` given their conditionals, in standardised units."""


@dataclass(frozen=True)
class GaussianNoise:
    """Additive noise, :math:`y = x + \\sigma\\, n` with :math:`n \\sim \\mathcal{N}(0, 1)`.

    The standard deviation ``sigma`` is positive, in data units. The posterior is proportional to
    :math:`q(x)\\, \\mathcal{N}(y; x, \\sigma^2)`. Its score :math:`s(x) + (y - x) / \\sigma^2` has the derivative
    :math:`s'(x) - 1 / \\sigma^2`, so it is integrated like any conditional.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma < math.inf:
            raise ValueError(f"sigma: expected a positive number, got {self.sigma}")

    def standardised(self, shift: float, scale: float) -> Self:
        return replace(self, sigma=self.sigma / scale)

    def corrupt(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return x + self.sigma * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)

    def posterior(self, prior: Conditionals, y: Tensor) -> posteriors.Posterior:
        _check_numeric(prior)
        if prior.method == "flow":
            return posteriors.flow_posterior(prior, y, self.sigma, self.log_likelihood)

        def score(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            s, ds = prior.score_and_derivative(x, rows, prior.sigma)
            return s + (y[rows, None] - x) / self.sigma**2, ds - self.sigma**-2

        accuracy = prior.accuracy
        density = integrate(score, self._nodes(prior, y.double()), None, accuracy.tol, accuracy.max_evaluations)
        prior.unconverged += int((~density.converged).sum())
        return posteriors.IntegratedPosterior(density, prior, posteriors.all_rows(y), y, self.log_likelihood)

    def log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        """Return :math:`\\log \\mathcal{N}(y; x, \\sigma^2)` in nats."""
        return -0.5 * ((y - x) / self.sigma).square() - math.log(self.sigma) - 0.5 * math.log(2.0 * math.pi)

    def _nodes(self, prior: Conditionals, y: Tensor) -> Tensor:
        """Merge the starting nodes of prior and likelihood, ``(N, K)``, with a minimum spacing."""
        prior_nodes = starting_nodes(prior.head, prior.projection, prior.sigma)
        noise_nodes = y[:, None] + self.sigma * torch.tensor(posteriors.LIKELIHOOD_GRID, dtype=y.dtype, device=y.device)
        nodes = torch.cat([prior_nodes, noise_nodes], 1).sort(1).values
        spacing = _MIN_SPACING * prior_nodes.diff(dim=1).amin(1, keepdim=True).clamp(max=self.sigma)
        offsets = spacing * torch.arange(nodes.shape[1], device=y.device)
        return (nodes - offsets).cummax(1).values + offsets


@dataclass(frozen=True)
class SaltAndPepper:
    """Impulse noise: each value is replaced with probability :math:`p`, by ``low`` or ``high`` with equal chances.

    A value between the extremes is intact. A value at an extreme is either intact or replaced. If it is replaced, the
    clean value follows :math:`q(x_d \\mid x_{<d})`. With the mass :math:`m` of :math:`q` beyond the point ``width``
    inside the extreme, the odds of the two cases are :math:`(1 - p)\\, m : p / 2`.

    Arguments:
        probability: Probability :math:`p` that a value is replaced, inside (0, 1).
        low: Values up to it count as pepper, in data units.
        high: Values from it on count as salt; above ``low``.
        width: Positive distance from an extreme within which a value of the model still counts as extreme. It should
            cover a grey level and, with a noise ladder, a few times the smallest noise.
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

    def standardised(self, shift: float, scale: float) -> Self:
        low, high = (self.low - shift) / scale, (self.high - shift) / scale
        return replace(self, low=low, high=high, width=self.width / scale)

    @classmethod
    def of_images(cls, probability: float, levels: int, smallest_noise: float = 0.0) -> Self:
        """Return the corruption of images in [-1, 1) whose values are the midpoints of their grey levels.

        ``smallest_noise`` is that of the model's ladder, in data units.
        """
        edge = 1.0 - 1.5 / levels
        return cls(probability, -edge, edge, width=2.0 / levels + 2.0 * smallest_noise)

    def corrupt(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        u = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        extreme = torch.where(u < 0.5 * self.probability, x.new_tensor(self.low), x.new_tensor(self.high))
        return torch.where(u < self.probability, extreme, x)

    def is_extreme(self, y: Tensor) -> Tensor:
        """Return which values are at an extreme, up to rounding: booleans in the shape of ``y``."""
        slack = _ROUNDING * (self.high - self.low)  # standardised values are in single precision
        return (y <= self.low + slack) | (y >= self.high - slack)

    def posterior(self, prior: Conditionals, y: Tensor) -> posteriors.Posterior:
        _check_numeric(prior)
        rows = self.is_extreme(y).nonzero()[:, 0]
        low = y[rows] < 0.5 * (self.low + self.high)
        edge = torch.where(low, y.new_tensor(self.low + self.width), y.new_tensor(self.high - self.width))
        below = prior.apply(lambda extreme: extreme.cdf(edge), rows)
        intact = (1.0 - self.probability) * torch.where(low, below, 1.0 - below).double()
        replaced = 0.5 * self.probability
        spike = torch.ones_like(y, dtype=torch.float64).index_put((rows,), intact / (intact + replaced))
        log_density = torch.full_like(spike, math.nan)
        log_density[rows] = torch.log((intact + replaced) / self.width)
        return posteriors.SpikeAndSlabPosterior(
            prior, posteriors.all_rows(y), y, spike, log_density, math.log1p(-self.probability)
        )


@dataclass(frozen=True)
class MissingValues:
    """Missing values: a value is either known exactly, or NaN.

    With :func:`arcsm.denoise.particle_filter`, candidates are samples of the missing values given all known ones, and
    the evidence is the density of the known ones. Contexts see complete candidates, so they need not accept missing
    values.
    """

    def standardised(self, shift: float, scale: float) -> Self:
        return self

    def corrupt(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the values unchanged: which values are missing is not part of the likelihood."""
        return x

    def posterior(self, prior: Conditionals, y: Tensor) -> posteriors.Posterior:
        return posteriors.MissingValuePosterior(prior, posteriors.all_rows(y), y)


def _check_numeric(prior: Conditionals) -> None:
    if prior.head.discrete:
        raise ValueError("corruption: expected numeric columns, got a nominal one; only MissingValues accepts both")


def standardised_at(corruption: Corruption, model: AutoregressiveModel, d: int) -> Corruption:
    """Return the corruption of dimension ``d`` in the model's standardised units."""
    return corruption.standardised(float(model.shift[d]), float(model.scale[d]))
