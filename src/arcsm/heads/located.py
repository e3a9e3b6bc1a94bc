"""A head in units of a location and a scale that come with each context."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from arcsm import registry
from arcsm.heads.base import Head, ScoreAndDerivative, Sigma


class Located(NamedTuple):
    """What the inner head reads of contexts or projections ``(*, P + 2)``, and the units of its values."""

    inner: Tensor  # (*, P)
    location: Tensor  # m, (*)
    log_scale: Tensor  # log s, (*)

    @classmethod
    def split(cls, features: Tensor) -> "Located":
        return cls(features[..., :-2], features[..., -2], features[..., -1])

    def to_units(self, x: Tensor) -> Tensor:
        """Return :math:`(x - m) / s`, ``(*)``."""
        return (x - self.location) * torch.exp(-self.log_scale)

    def from_units(self, u: Tensor) -> Tensor:
        """Return :math:`m + s\\,u`, ``(*)``."""
        return self.location + u * torch.exp(self.log_scale)


class LocatedHead(Head):
    """A head in units of a location :math:`m` and a scale :math:`s`, the last two features of a context being
    :math:`(m, \\log s)`.

    .. math:: q_\\sigma(x \\mid c, m, s) = \\tfrac1s\\, q_\\sigma(u \\mid c), \\qquad u = \\frac{x - m}{s}

    The inner head models what the location leaves, however narrow that is: noise and all else that it knows about
    values is in units of :math:`s`, so at a level :math:`\\sigma` the values :math:`x` have noise of standard
    deviation :math:`s \\sigma`. :class:`AnyOrder` (``located=True``) gives the best linear predictor as the location.
    ``csm`` and ``dsm`` on a ladder train the inner head, and take locations and scales as they are. Objectives with one
    noise level for all values do not suit it.

    Arguments:
        inner: A head with a score and no closed form, such as a :class:`ScoreHead`. Its contexts have two features
            less.

    Example:
        >>> from arcsm import ScoreHead
        >>> head = LocatedHead(ScoreHead(context_features=4))
        >>> context = torch.tensor([0.0, 0.0, 0.0, 0.0, 7.0, -4.6])  # x is 7.00 or so
        >>> head.context_features, head.score(context, torch.tensor(7.01), sigma=0.1) < -50.0
        (6, tensor(True))
    """

    located = True

    def __init__(self, inner: Head | Mapping[str, Any]) -> None:
        super().__init__()
        self.inner: Head = inner if isinstance(inner, nn.Module) else registry.build("head", inner)
        if not isinstance(self.inner, Head) or self.inner.normalised or not self.inner.has_score:
            raise ValueError(f"inner: expected a head with a score and no closed form, got {type(self.inner).__name__}")
        if isinstance(self.inner, LocatedHead) or not hasattr(self.inner, "context_features"):
            raise ValueError(f"inner: expected a head of single columns, got {type(self.inner).__name__}")
        self.context_features, self.has_density = self.inner.context_features + 2, self.inner.has_density

    def config(self) -> dict[str, Any]:
        return {"inner": {"kind": type(self.inner).__name__, **self.inner.config()}}

    def project(self, context: Tensor) -> Tensor:
        return torch.cat([self.inner.project(context[..., :-2]), context[..., -2:]], -1)

    def projected_score(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        base = Located.split(projection)
        return self.inner.projected_score(base.inner, base.to_units(x), sigma) * torch.exp(-base.log_scale)

    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> ScoreAndDerivative:
        base = Located.split(projection)
        s, ds = self.inner.projected_score_and_derivative(base.inner, base.to_units(x), sigma)
        return s * torch.exp(-base.log_scale), ds * torch.exp(-2.0 * base.log_scale)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        return self.inner.loss_weight(sigma)
