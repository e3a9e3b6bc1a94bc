"""Building blocks of the objectives: noisy batches, the weighted loss, and differentiable scores."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from arcsm._runtime.random import Source, normal_like
from arcsm.errors import readable
from arcsm.heads import NormalisedHead, ScoreHead
from arcsm.model import AutoregressiveModel
from arcsm.objectives.fused import fused_score_matching, transforms_allow_fusion

Weighting = Literal["natural", "sigma2"]


class NoisyBatch(NamedTuple):
    """A batch with the noise of paper, Appendix C.2; each ``(B, D)``."""

    x_hat: Tensor  # x + sigma_L eps, read by the context
    x_tilde: Tensor  # x + sigma eps', the scalars whose scores are matched
    sigma: Tensor  # noise level of each scalar
    noise: Tensor  # eps'
    weight: Tensor  # omega(sigma), zero for missing values


def add_noise(model: AutoregressiveModel, x: Tensor, generator: Source, weighting: Weighting) -> NoisyBatch:
    """Draw noise and noise levels for standardised data ``(B, D)``."""
    assert model.noise is not None
    if weighting not in ("natural", "sigma2"):
        raise ValueError(f'weighting: expected "natural" or "sigma2", got {weighting!r}')
    x_hat = x + model.noise.sigma_min * normal_like(x, generator)
    noise = normal_like(x, generator)
    sigma = model.noise.draw(x, generator)
    weight = model.head.loss_weight(sigma) if weighting == "natural" else sigma.square()
    x_tilde, weight = mask_missing(model, x + sigma * noise, weight)
    return NoisyBatch(x_hat, x_tilde, sigma, noise, weight)


def mask_missing(model: AutoregressiveModel, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Replace missing values by zero and set their weights to zero, if the model accepts missing values."""
    if not model.context.missing:
        return x, weight
    observed = ~x.isnan()
    return torch.where(observed, x, 0.0), weight * observed


def score_matching_loss(
    model: AutoregressiveModel,
    context: Tensor,
    x: Tensor,
    sigma: Tensor | None,
    weight: Tensor,
    derivative: Tensor,
    linear: Tensor,
    compiled: bool | None,
) -> Tensor:
    """Return the mean over rows of the sum of :math:`\\omega\\,(\\tfrac12 s^2 + a\\, \\partial_x s + b\\, s)`.

    Contexts are ``(B, D, C)``, values and noise levels ``(B, D)``, and the coefficients ``weight``, ``derivative`` and
    ``linear`` are ``(B, D)`` or ``()``.
    """
    allowed = not x.requires_grad and transforms_allow_fusion()
    if allowed and isinstance(model.head, ScoreHead) and model.head.has_original_score:
        coefficients = (weight.flatten(), derivative.flatten(), linear.flatten())
        levels = None if sigma is None else sigma.flatten()
        total = fused_score_matching(
            model.head, context.flatten(0, -2), x.flatten(), levels, *coefficients, compiled=compiled
        )
    else:
        s, ds = model.head.score_and_derivative(context, x, sigma)
        total = (weight * (0.5 * s.square() + derivative * ds + linear * s)).sum()
    return total / (x.numel() // model.features)


def scores_at_smallest_noise(
    model: AutoregressiveModel, x: Tensor, condition: Tensor | None, generator: Source, joint: bool | None
) -> tuple[Tensor, Tensor]:
    """Return :func:`differentiable_scores` of data plus the smallest noise; joint by default for a normalised head."""
    z = model.standardise(x)
    check_no_missing(z)
    sigma = None if model.noise is None else model.noise.sigma_min
    if sigma is not None:
        z = z + sigma * normal_like(z, generator)
    return differentiable_scores(model, z, condition, model.head.normalised if joint is None else joint, sigma)


def check_no_missing(x: Tensor) -> None:
    values = readable(x)
    if values is not None and bool(values.isnan().any()):
        raise ValueError("x: contains missing values; use csm, mle, or dsm without sigma, which accept them")


def differentiable_scores(
    model: AutoregressiveModel, z: Tensor, condition: Tensor | None, joint: bool, sigma: float | None
) -> tuple[Tensor, Tensor]:
    """Return scores ``(B, D)`` and the leaf tensor ``z (B, D)`` by which they can be differentiated.

    The scores are :math:`\\nabla_z \\log q(z)` if ``joint``, which needs a normalised head, or the conditional ones.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        projection = model.head.project(model.contexts(z, condition))
        if not joint:
            return model.head.projected_score(projection, z, sigma), z
        if not isinstance(model.head, NormalisedHead):
            raise ValueError(f"joint: the joint score needs a normalised head, got a {type(model.head).__name__}")
        if not model.head.has_score:
            model.head.projected_score(projection, z, sigma)  # raises the error that says why
        log_prob = model.head.projected_log_prob(projection, z, sigma).sum()
        return torch.autograd.grad(log_prob, z, create_graph=True)[0], z
