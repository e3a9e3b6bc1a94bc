"""Interfaces of heads: what a one-dimensional conditional must provide, and what it may speed up."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from arcsm._runtime.memory import Workspace
from arcsm.registry import Seam, constructor_arguments

_MAX_BRACKET_DOUBLINGS = 60
_BISECTIONS = 60

_SCORE = "projected_score_and_derivative"
_FASTER_SCORES = ("projected_score", "prepare_score", "prepare_score_and_derivative")  # give what _SCORE gives

Sigma = float | Tensor | None
ScoreAndDerivative = tuple[Tensor, Tensor]


class Head(nn.Module, ABC):
    """A one-dimensional conditional :math:`q_\\sigma(x_d \\mid c_d)`, defined by its score.

    The constructor of a head of your own has an argument ``context_features``, as those of all heads do. It stores each
    argument as an attribute of the same name. Two methods are to be implemented:

    - :meth:`project` maps a context to a *projection*: the part of the work that many values share.
    - :meth:`projected_score_and_derivative` maps projections and values to scores. They must broadcast: projections
      ``(N, 1, P)`` and values ``(N, K)`` give scores ``(N, K)``.

    Methods named ``projected_*`` take projections, the others take contexts. Overriding :meth:`projected_score` and the
    ``prepare_*`` methods is optional and only saves time. They must give the same scores, so a class that overrides one
    of them also defines :meth:`projected_score_and_derivative`; and a class that defines only that does not inherit
    faster methods from another head. A head with a closed-form density is better a :class:`NormalisedHead`. Call
    :func:`arcsm.register` on the class to save and load models that use it.

    Raises:
        TypeError: On the definition of a class that overrides one of the optional methods alone.

    Attributes:
        context_features: Size :math:`C` of the contexts.
        normalised: Whether density and CDF exist in closed form (:class:`NormalisedHead`).
        has_score: Whether there is a score; ``False`` for a head of probabilities, which is trained by likelihood.
        has_density: Whether there is a density, in closed form or by integration of the score, as for every
            :class:`NormalisedHead` and :class:`ScoreHead`. Models of other heads draw samples by Langevin dynamics,
            and have no likelihood.
        discrete: Whether values are numbers of levels, which are not standardised and get no noise.
        located: Whether the last two features of a context are a location and a log scale.

    Example:
        >>> import torch
        >>> import arcsm
        >>> @arcsm.register
        ... class UnitGaussianHead(Head):  # unit variance; the first feature of the context is the mean
        ...     def __init__(self, context_features: int = 1) -> None:
        ...         super().__init__()
        ...         self.context_features = context_features
        ...     def project(self, context):
        ...         return context[..., :1]
        ...     def projected_score_and_derivative(self, projection, x, sigma=None):
        ...         precision = 1.0 / (1.0 + (0.0 if sigma is None else sigma**2))
        ...         s = (projection[..., 0] - x) * precision
        ...         return s, torch.zeros_like(s) - precision
        >>> arcsm.check(UnitGaussianHead())
        >>> s, ds = UnitGaussianHead().score_and_derivative(torch.zeros(2, 1), torch.tensor([0.5, 1.0]))
        >>> s.tolist(), ds.tolist()
        ([-0.5, -1.0], [-1.0, -1.0])
    """

    seam: ClassVar[Seam] = "head"
    context_features: int
    normalised: bool = False
    has_score: bool = True
    has_density: bool = False
    discrete: bool = False
    located: bool = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Make sure that all ways to evaluate the score evaluate the same one."""
        super().__init_subclass__(**arguments)

        def place(method: str) -> int:  # of its definition in the order of inheritance; 0 is the class itself
            return next(place for place, base in enumerate(cls.__mro__) if method in vars(base))

        for method in _FASTER_SCORES:
            if place(method) > place(_SCORE) and getattr(cls, method) is not getattr(Head, method):
                setattr(cls, method, getattr(Head, method))
            elif place(method) < place(_SCORE):
                raise TypeError(
                    f"{cls.__name__}: overrides {method}, but inherits {_SCORE}, which must give the same scores; "
                    "override both"
                )

    @abstractmethod
    def project(self, context: Tensor) -> Tensor:
        """Map contexts ``(*, C)`` to projections ``(*, P)`` of any size P."""

    def in_single_precision(self, context: Tensor) -> Tensor:
        """Return :meth:`project` where errors of single precision do not matter, which may be faster."""
        return self.project(context)

    @abstractmethod
    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> ScoreAndDerivative:
        """Return score and derivative, each ``(*)``, from projections ``(*, P)`` and values ``(*)``."""

    def parts(self, features: int) -> "list[HeadColumns]":
        """Return the heads of single columns, with their columns: this head for all ``features`` columns."""
        return [HeadColumns(self, tuple(range(features)))]

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, JSON-ready. Override it if an attribute differs from its argument."""
        return constructor_arguments(self)

    def score_and_derivative(self, context: Tensor, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        """Return the score :math:`s = \\partial_x \\log q_\\sigma(x \\mid c)` and :math:`\\partial_x s`, both exact.

        Contexts ``(*, C)``, values ``(*)`` in standardised units and a noise level, a number or ``(*)`` (``None`` for a
        model without a ladder), give two tensors ``(*)``, in 1/units and 1/units^2.
        """
        return self.projected_score_and_derivative(self.project(context), x, sigma)

    def score(self, context: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Return the score of :meth:`score_and_derivative` alone, ``(*)``."""
        return self.projected_score(self.project(context), x, sigma)

    def projected_score(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Return the score alone, ``(*)``; override it if that saves work."""
        return self.projected_score_and_derivative(projection, x, sigma)[0]

    def prepare_score(self, sigma: Sigma) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the score at one noise level as a function of projections ``(N, P)`` and values ``(N,)``.

        Samplers call this function many times, without gradients; override this method to compute constants of the
        noise level only once.
        """
        return lambda projection, x: self.projected_score(projection, x, sigma)

    def prepare_score_and_derivative(
        self, sigma: Sigma, workspace: Workspace | None = None
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return score and derivative at one noise level as a function, like :meth:`prepare_score`.

        The function also takes projections ``(N, 1, P)`` with values ``(N, K)``. It may keep intermediate results, but
        not what it returns, in the ``workspace``, which only one thread may use at a time.
        """
        return lambda projection, x: self.projected_score_and_derivative(projection, x, sigma)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Return the weight that makes losses at different noise levels comparable: :math:`\\sigma^2` (NCSN)."""
        return sigma.square()


class HeadColumns(NamedTuple):
    """A head of single columns, and the columns whose conditionals it gives."""

    head: Head
    columns: tuple[int, ...]


class NormalisedHead(Head):
    """A head whose density and CDF have a closed form.

    Gradients flow through its log density, so it can be trained by likelihood (:func:`arcsm.objectives.mle`). In
    addition to the methods of :class:`Head`, implement :meth:`projected_log_prob`, :meth:`projected_cdf` and
    :meth:`bracket`.
    """

    normalised = True
    has_density = True

    @abstractmethod
    def projected_log_prob(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Return :math:`\\log q_\\sigma(x)` in nats, ``(*)``."""

    @abstractmethod
    def projected_cdf(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Return the cumulative distribution function :math:`F_\\sigma(x)`, ``(*)``."""

    @abstractmethod
    def bracket(self, projection: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        """Return two points ``(*)`` that enclose all but less than 1e-9 of the mass."""

    def projected_icdf(self, projection: Tensor, u: Tensor, sigma: Sigma = None) -> Tensor:
        """Return the inverse of :meth:`projected_cdf` at ``u (*)`` in (0, 1), by bisection; override it if you can."""
        low, high = self.bracket(projection, sigma)
        for _ in range(_MAX_BRACKET_DOUBLINGS):  # the tails hold quantiles outside of the bracket
            above, below = (self.projected_cdf(projection, end, sigma) for end in (low, high))
            if not bool(((above > u) | (below < u)).any()):
                break
            width = high - low
            low, high = torch.where(above > u, low - width, low), torch.where(below < u, high + width, high)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            below = self.projected_cdf(projection, middle, sigma) < u
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high.round() if self.discrete else 0.5 * (low + high)

    def log_prob(self, context: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Return :math:`\\log q_\\sigma(x \\mid c)` in nats, for contexts ``(*, C)`` and values ``(*)``."""
        return self.projected_log_prob(self.project(context), x, sigma)

    def cdf(self, context: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Return :math:`F_\\sigma(x \\mid c)`, for contexts ``(*, C)`` and values ``(*)``."""
        return self.projected_cdf(self.project(context), x, sigma)


def variance(sigma: Sigma) -> float | Tensor:
    """Return :math:`\\sigma^2`; zero without noise."""
    return 0.0 if sigma is None else sigma * sigma
