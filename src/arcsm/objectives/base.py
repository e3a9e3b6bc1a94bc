"""What the objectives share: noisy inputs, the weighted loss of a batch, and joint scores."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from arcsm._runtime.random import Source, normal_like
from arcsm.heads import NormalisedHead, ScoreHead
from arcsm.model import AutoregressiveModel
from arcsm.objectives.fused import fused_score_matching

Weighting = Literal["natural", "sigma2"]


def add_noise(
    model: AutoregressiveModel, z: Tensor, generator: Source, weighting: Weighting
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the context reads, the noisy scalars, their sigma and unit noise, and the weight, each ``(B, D)``."""
    assert model.noise is not None
    if weighting not in ("natural", "sigma2"):
        raise ValueError(f'weighting: expected "natural" or "sigma2", got {weighting!r}')
    context_input = z + model.noise.sigma_min * normal_like(z, generator)
    noise = normal_like(z, generator)
    sigma = model.noise.draw(z, generator)
    weight = model.head.loss_weight(sigma) if weighting == "natural" else sigma.square()
    noisy, weight = mask_missing(model, z + sigma * noise, weight)
    return context_input, noisy, sigma, noise, weight


def mask_missing(model: AutoregressiveModel, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values and their weights: where a value is missing, any value with weight zero."""
    if not model.context.missing:
        return z, weight
    known = ~z.isnan()
    return torch.where(known, z, 0.0), weight * known


def score_matching_loss(
    model: AutoregressiveModel,
    context: Tensor,
    z: Tensor,
    sigma: Tensor | None,
    weight: Tensor,
    derivative: Tensor,
    linear: Tensor,
    compiled: bool | None,
) -> Tensor:
    """Mean over the batch of the sum of weight * (s^2 / 2 + derivative * ds + linear * s); contexts ``(B, D, C)``."""
    if isinstance(model.head, ScoreHead) and model.head.has_original_score and not z.requires_grad:
        total = fused_score_matching(
            model.head,
            context.flatten(0, -2),
            z.flatten(),
            None if sigma is None else sigma.flatten(),
            weight.flatten() if weight.ndim else weight,
            derivative.flatten() if derivative.ndim else derivative,
            linear.flatten() if linear.ndim else linear,
            compiled,
        )
    else:
        s, ds = model.head.score_and_derivative(context, z, sigma)
        total = (weight * (0.5 * s.square() + derivative * ds + linear * s)).sum()
    return total / (z.numel() // model.features)


def scores_at_smallest_noise(
    model: AutoregressiveModel,
    x: Tensor,
    condition: Tensor | None,
    generator: Source,
    joint: bool | None,
) -> tuple[Tensor, Tensor]:
    z = model.standardise(x)
    check_no_missing(z)
    sigma = None if model.noise is None else model.noise.sigma_min
    if sigma is not None:
        z = z + sigma * normal_like(z, generator)
    return differentiable_scores(model, z, condition, model.head.normalised if joint is None else joint, sigma)


def check_no_missing(z: Tensor) -> None:
    if bool(z.isnan().any()):
        raise ValueError("x: holds missing values, of which a field has no scores; use csm, mle, or dsm without sigma")


def differentiable_scores(
    model: AutoregressiveModel, z: Tensor, condition: Tensor | None, joint: bool, sigma: float | None
) -> tuple[Tensor, Tensor]:
    """A field of scores ``(B, D)`` and the leaf ``z`` that it can be differentiated by."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        projection = model.head.project(model.context(z, condition))
        if not joint:
            return model.head.projected_score(projection, z, sigma), z
        if not isinstance(model.head, NormalisedHead):
            raise ValueError(f"joint: the joint score needs a normalised head, got a {type(model.head).__name__}")
        if not model.head.has_score:
            model.head.projected_score(projection, z, sigma)  # says why not
        log_prob = model.head.projected_log_prob(projection, z, sigma).sum()
        return torch.autograd.grad(log_prob, z, create_graph=True)[0], z
