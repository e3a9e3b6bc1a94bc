"""Maximum likelihood."""

from __future__ import annotations

import torch
from torch import Tensor

from arcsm._runtime.random import Source, normal_like
from arcsm.conditionals.conditionals import Accuracy, Conditionals
from arcsm.heads import NormalisedHead
from arcsm.model import AutoregressiveModel


def mle(
    model: AutoregressiveModel,
    x: Tensor,
    level: int = -1,
    condition: Tensor | None = None,
    generator: Source = None,
    tol: float = 1e-4,
    max_evaluations: int = 128,
) -> Tensor:
    """Negative log likelihood in nats, in data units.

    In closed form for normalised heads; for a :class:`ScoreHead` through the quadrature, whose nodes are placed
    without gradients and whose formula is differentiated. With a ladder it is that of the data with the noise of
    ``level``.

    Arguments:
        model: The model.
        x: Data, ``(B, D)``.
        level: Noise level.
        condition: What the model is conditioned on.
        generator: Source of the noise.
        tol: Error of each conditional in nats to aim for.
        max_evaluations: Largest number of evaluations of the score for one conditional.
    """
    path = model.path(level)
    z = model.standardise(x)
    sigma = path[-1] if path else None
    if sigma is not None:
        z = z + sigma * normal_like(z, generator)
    projection = model.head.project(model.context(z, condition)).flatten(0, -2)  # (B * D, P)
    known = ~z.isnan()
    z = torch.where(known, z, 0.0) if model.context.missing else z
    if isinstance(model.head, NormalisedHead):
        terms = model.head.projected_log_prob(projection, z.flatten(), sigma)
    else:
        accuracy = Accuracy(tol, max_evaluations)
        terms = Conditionals(model.head, projection, path, "quadrature", accuracy).differentiable_log_prob(z.flatten())
    terms = terms.view_as(z) - torch.log(model.scale)
    return -(terms * known if model.context.missing else terms).sum() / len(z)
