"""What every head is: a context c_d and a value x_d in, the score of x_d and its derivative out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from arcsm.batches import Workspace

Sigma = float | Tensor | None


class Head(nn.Module, ABC):
    """A one-dimensional conditional :math:`q_\\sigma(x_d \\mid c_d)`, known at least by its score.

    A head works in two steps, so that many values of :math:`x_d` can share the work on one context:
    :meth:`project` turns a context into what the head needs of it, :meth:`score` and :meth:`evaluate` take it from
    there. Everything broadcasts: a projection ``(N, 1, P)`` and values ``(N, K)`` give ``(N, K)``.

    Attributes:
        context_features: Size :math:`C` of the contexts.
        normalised: Whether the density and the CDF exist in closed form (:class:`NormalisedHead`).
        has_score: Whether there is a score; what needs one is not for a head of probabilities.
    """

    context_features: int
    normalised: bool = False
    has_score: bool = True

    @abstractmethod
    def project(self, context: Tensor) -> Tensor:
        """What the head needs of a context, ``(*, C)`` to ``(*, P)``."""

    @abstractmethod
    def evaluate(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        """Score and derivative, each ``(*)``, from a projection ``(*, P)`` and values ``(*)``."""

    def score(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        """The score alone, ``(*)``, where a head can save the work on the derivative."""
        return self.evaluate(projection, x, sigma)[0]

    def at(self, sigma: Sigma) -> Callable[[Tensor, Tensor], Tensor]:
        """The score at one noise level as a function of projections ``(N, P)`` and values ``(N,)``.

        What depends on the level alone is done once, for those who ask many times (samplers). No gradients.
        """
        return lambda projection, x: self.score(projection, x, sigma)

    def at_with_derivative(
        self, sigma: Sigma, workspace: Workspace | None = None
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """:meth:`evaluate` at one noise level, like :meth:`at`; values ``(N, K)`` go with projections ``(N, 1, P)``.

        A ``workspace`` holds what lies between, for a head that uses it; only one thread at a time may.
        """
        return lambda projection, x: self.evaluate(projection, x, sigma)

    def score_and_derivative(self, context: Tensor, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        """The score :math:`s = \\partial_x \\log q_\\sigma(x \\mid c)` and :math:`\\partial_x s`, exact, in one pass.

        Arguments:
            context: ``(*, C)``.
            x: ``(*)``, in standardised units.
            sigma: Noise level, a number or ``(*)``; ``None`` where the model has no ladder.

        Returns:
            Two tensors ``(*)``, in 1/units and 1/units^2.
        """
        return self.evaluate(self.project(context), x, sigma)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """The weight that makes a score matching loss comparable between noise levels: :math:`\\sigma^2` (NCSN)."""
        return sigma.square()

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""


class NormalisedHead(Head):
    """A head whose density and CDF have a closed form."""

    normalised = True

    @abstractmethod
    def log_density(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        """:math:`\\log q_\\sigma(x)` in nats, ``(*)``."""

    @abstractmethod
    def distribution(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        """The cumulative distribution :math:`F_\\sigma(x)`, ``(*)``."""

    @abstractmethod
    def bracket(self, projection: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        """Two points ``(*)`` with all but a negligible (< 1e-9) share of the mass between them."""

    def log_prob(self, context: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        """:math:`\\log q_\\sigma(x \\mid c)` in nats; contexts ``(*, C)``, values ``(*)``."""
        return self.log_density(self.project(context), x, sigma)

    def cdf(self, context: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        """:math:`F_\\sigma(x \\mid c)`; contexts ``(*, C)``, values ``(*)``."""
        return self.distribution(self.project(context), x, sigma)


def variance(sigma: Sigma) -> float | Tensor:
    """:math:`\\sigma^2`, and zero where there is no noise."""
    return 0.0 if sigma is None else sigma * sigma
