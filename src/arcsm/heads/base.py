"""What every head is: a context c_d and a value x_d in, the score of x_d and its derivative out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from arcsm._runtime.memory import Workspace
from arcsm.registry import Seam

Sigma = float | Tensor | None


class Head(nn.Module, ABC):
    """A one-dimensional conditional :math:`q_\\sigma(x_d \\mid c_d)`, known at least by its score.

    A head works in two steps, so that many values of :math:`x_d` can share the work on one context:
    :meth:`project` turns a context into what the head needs of it, and methods whose names begin with ``projected_``
    continue from there. Everything broadcasts: a projection ``(N, 1, P)`` and values ``(N, K)`` give ``(N, K)``.

    Attributes:
        context_features: Size :math:`C` of the contexts.
        normalised: Whether the density and the CDF exist in closed form (:class:`NormalisedHead`).
        has_score: Whether there is a score; what needs one is not for a head of probabilities.
    """

    seam: ClassVar[Seam] = "head"
    context_features: int
    normalised: bool = False
    has_score: bool = True

    @abstractmethod
    def project(self, context: Tensor) -> Tensor:
        """What the head needs of a context, ``(*, C)`` to ``(*, P)``."""

    @abstractmethod
    def projected_score_and_derivative(
        self, projection: Tensor, x: Tensor, sigma: Sigma = None
    ) -> tuple[Tensor, Tensor]:
        """Score and derivative, each ``(*)``, from a projection ``(*, P)`` and values ``(*)``."""

    def projected_score(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        """The score alone, ``(*)``, where a head can save the work on the derivative."""
        return self.projected_score_and_derivative(projection, x, sigma)[0]

    def prepare_score(self, sigma: Sigma) -> Callable[[Tensor, Tensor], Tensor]:
        """The score at one noise level as a function of projections ``(N, P)`` and values ``(N,)``.

        What depends on the level alone is done once, for those who ask many times (samplers). No gradients.
        """
        return lambda projection, x: self.projected_score(projection, x, sigma)

    def prepare_score_and_derivative(
        self, sigma: Sigma, workspace: Workspace | None = None
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Prepare :meth:`projected_score_and_derivative` at one noise level, as :meth:`prepare_score` does.

        Values ``(N, K)`` go with projections ``(N, 1, P)``.

        A ``workspace`` holds what lies between, for a head that uses it; only one thread at a time may.
        """
        return lambda projection, x: self.projected_score_and_derivative(projection, x, sigma)

    def score_and_derivative(self, context: Tensor, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        """The score :math:`s = \\partial_x \\log q_\\sigma(x \\mid c)` and :math:`\\partial_x s`, exact, in one pass.

        Arguments:
            context: ``(*, C)``.
            x: ``(*)``, in standardised units.
            sigma: Noise level, a number or ``(*)``; ``None`` where the model has no ladder.

        Returns:
            Two tensors ``(*)``, in 1/units and 1/units^2.
        """
        return self.projected_score_and_derivative(self.project(context), x, sigma)

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
    def projected_log_prob(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        """:math:`\\log q_\\sigma(x)` in nats, ``(*)``."""

    @abstractmethod
    def projected_cdf(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        """The cumulative distribution :math:`F_\\sigma(x)`, ``(*)``."""

    @abstractmethod
    def bracket(self, projection: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        """Two points ``(*)`` with all but a negligible (< 1e-9) share of the mass between them."""

    def log_prob(self, context: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        """:math:`\\log q_\\sigma(x \\mid c)` in nats; contexts ``(*, C)``, values ``(*)``."""
        return self.projected_log_prob(self.project(context), x, sigma)

    def cdf(self, context: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        """:math:`F_\\sigma(x \\mid c)`; contexts ``(*, C)``, values ``(*)``."""
        return self.projected_cdf(self.project(context), x, sigma)


def variance(sigma: Sigma) -> float | Tensor:
    """:math:`\\sigma^2`, and zero where there is no noise."""
    return 0.0 if sigma is None else sigma * sigma
