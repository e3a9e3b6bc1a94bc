"""Maximum likelihood."""

import torch
from torch import Tensor

from arcsm._runtime.conditions import Condition
from arcsm._runtime.random import Source, normal_like
from arcsm.conditionals.conditionals import Accuracy, Conditionals
from arcsm.errors import is_mapped
from arcsm.heads import NormalisedHead
from arcsm.model import AutoregressiveModel
from arcsm.objectives.base import context_noise, in_units, standardised_rows, terms_by_head, weighted_values


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
    noise of ``level``. Gradients with respect to ``x`` go through the values and through the contexts.

    ``tol`` and ``max_evaluations`` are as in :meth:`AutoregressiveModel.log_prob`, other arguments as in :func:`csm`.

    Raises:
        NotImplementedError: In ``torch.func.vmap``, for a head that is integrated.
    """
    path = model.path(level)
    z = standardised_rows(model, x)
    sigma = path[-1] if path else None
    noise = torch.zeros_like(z) if sigma is None else sigma * normal_like(z, generator)
    terms = model.training_terms(z + context_noise(model, noise), condition, generator)
    values, weights = weighted_values(model, terms, terms.select(z), z.new_ones(()))
    noise = terms.select(noise)
    log_scale, loss = terms.select(torch.log(model.scale).expand_as(z)), z.new_zeros(())
    for head, its in terms_by_head(model, terms, z):
        part = slice(None) if its is None else its
        head, context, x, log_unit = in_units(head, terms.context[part], values[part])
        projection, x = head.project(context), x if head.discrete else x + noise[part]  # (N, P), (N,)
        if isinstance(head, NormalisedHead):
            log_prob = head.projected_log_prob(projection, x, None if head.discrete else sigma)
        else:
            if is_mapped(projection) or is_mapped(x):
                raise NotImplementedError(
                    f"mle: torch.func.vmap cannot integrate a {type(head).__name__}; differentiate one row after "
                    "another, or use csm, dsm or a normalised head"
                )
            conditionals = Conditionals(head, projection, path, "quadrature", Accuracy(tol, max_evaluations))
            log_prob = conditionals.differentiable_log_prob(x)
        loss = loss - (weights[part] * (log_prob - log_unit - log_scale[part])).sum()
    return loss / len(z)
