"""Maximum likelihood."""

import torch
from torch import Tensor

from arcsm._runtime.conditions import Condition
from arcsm._runtime.random import Source, normal_like
from arcsm.conditionals.conditionals import Accuracy, Conditionals
from arcsm.heads import NormalisedHead
from arcsm.model import AutoregressiveModel
from arcsm.objectives.base import standardised_rows, weighted_values


def mle(
    model: AutoregressiveModel,
    x: Tensor,
    level: int = -1,
    condition: Condition | None = None,
    generator: Source = None,
    tol: float = 1e-4,
    max_evaluations: int = 128,
) -> Tensor:
    """Negative log likelihood in nats, in data units.

    Normalised heads have a closed form. A :class:`ScoreHead` is integrated by quadrature: the nodes are placed without
    gradients, and the quadrature formula is differentiated. With a ladder, the likelihood is that of the data with the
    noise of ``level``. ``tol`` and ``max_evaluations`` are as in :meth:`AutoregressiveModel.log_prob`, other arguments
    as in :func:`csm`.
    """
    path = model.path(level)
    z = standardised_rows(model, x)
    sigma = path[-1] if path else None
    if sigma is not None:
        z = z + sigma * normal_like(z, generator)
    terms = model.training_terms(z, condition, generator)
    projection = model.head.project(terms.context)  # (N, P)
    values, weight = weighted_values(model, terms, terms.select(z), z.new_ones(()))
    if isinstance(model.head, NormalisedHead):
        log_prob = model.head.projected_log_prob(projection, values, sigma)
    else:
        conditionals = Conditionals(model.head, projection, path, "quadrature", Accuracy(tol, max_evaluations))
        log_prob = conditionals.differentiable_log_prob(values)
    return -(weight * (log_prob - terms.select(torch.log(model.scale).expand_as(z)))).sum() / len(z)
