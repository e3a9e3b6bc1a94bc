"""Known corruptions, and the exact one-dimensional posteriors of what they have spoilt.

A corruption says how a noisy value :math:`y_d` came from the true one. With the conditional of a model as the prior,

.. math:: p(x_d \\mid y_d, x_{<d}) \\propto q(x_d \\mid x_{<d})\\, p(y_d \\mid x_d)

is a density of one variable, whose mean, quantiles and normaliser (the evidence) are at hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import Tensor

from arcsm.conditionals.conditionals import Conditionals, starting_nodes
from arcsm.conditionals.quadrature import integrate
from arcsm.denoise.posteriors import (
    LIKELIHOOD_GRID,
    Integrated,
    PartlyKnownPosterior,
    Posterior,
    SpikePosterior,
    all_of,
    ask,
    through_the_flow,
)

if TYPE_CHECKING:
    from arcsm.model import AutoregressiveModel

_ROUNDING = 1e-6  # of the range between two extremes
_CLOSEST = 0.01  # of the noise or the grid of the prior, whichever is finer: how near two starting nodes may be


class Corruption(Protocol):
    """How a noisy value comes from a true one, independently in each dimension."""

    def standardised(self, shift: float, scale: float) -> Corruption:
        """The same corruption of :math:`(x - \\text{shift}) / \\text{scale}`."""

    def corrupt(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
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

    def corrupt(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return x + self.sigma * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)

    def posterior(self, prior: Conditionals, y: Tensor) -> Posterior:
        if prior.method == "flow":
            return through_the_flow(prior, y, self.sigma, self.log_likelihood)

        def score(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            s, ds = prior.score_and_derivative(x, rows, prior.sigma)
            return s + (y[rows, None] - x) / self.sigma**2, ds - self.sigma**-2

        accuracy = prior.accuracy
        nodes = self._nodes(prior, y.double())
        density = integrate(score, nodes, None, accuracy.tol, accuracy.max_evaluations)
        prior.unconverged += int((~density.converged).sum())
        return Integrated(density, prior, all_of(y), y, self.log_likelihood)

    def log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        """:math:`\\log \\mathcal{N}(y; x, \\sigma^2)` in nats."""
        return -0.5 * ((y - x) / self.sigma).square() - math.log(self.sigma) - 0.5 * math.log(2.0 * math.pi)

    def _nodes(self, prior: Conditionals, y: Tensor) -> Tensor:
        """Starting nodes of the prior and of the likelihood, in one row each, none too near another: ``(N, K)``."""
        of_prior = starting_nodes(prior.head, prior.projection, prior.sigma)
        of_noise = y[:, None] + self.sigma * torch.tensor(LIKELIHOOD_GRID, dtype=y.dtype, device=y.device)
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

    def corrupt(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
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
        return SpikePosterior(prior, all_of(y), y, kept, log_density, math.log1p(-self.probability))


@dataclass(frozen=True)
class MissingValues:
    """Values are known exactly, or not at all (NaN): the corruption of a table with missing values.

    With :func:`arcsm.denoise.particles` the candidates are draws of the missing values given all the known ones, and
    the evidence is the density of those. Candidates are whole, so that any context will do.
    """

    def standardised(self, shift: float, scale: float) -> MissingValues:
        return self

    def corrupt(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The values as they are: which are lost is not for this to say."""
        return x

    def posterior(self, prior: Conditionals, y: Tensor) -> Posterior:
        return PartlyKnownPosterior(prior, all_of(y), y)


def standardised_at(corruption: Corruption, model: AutoregressiveModel, d: int) -> Corruption:
    """The corruption of a dimension in the model's standardised units."""
    return corruption.standardised(float(model.shift[d]), float(model.scale[d]))
