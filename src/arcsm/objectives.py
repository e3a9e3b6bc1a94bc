"""Training objectives: pure functions of a model and a batch, each a scalar ready for ``backward()``.

All of them return the mean over the batch of the sum over dimensions. Scores, noise and losses are in standardised
units (``model.standardise``), so that columns of different units weigh alike; but the loss of :func:`mle` is in nats,
of data units. Where a model has a noise ladder, the objectives add the noise themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from arcsm.conditionals import Accuracy, Conditionals
from arcsm.draws import Source, normal_like
from arcsm.fields import (
    Projections,
    denoising_score_matching,
    exact_score_matching,
    sliced_score_matching,
)
from arcsm.fused import fused_score_matching
from arcsm.heads import NormalisedHead, ScoreHead
from arcsm.model import AutoregressiveModel

Mix = float | Literal["auto"]
Weighting = Literal["natural", "sigma2"]

_AUTO_BINS = 5  # noise levels at which the mix is chosen
_AUTO_POINTS = 8192  # points of a batch that it is chosen from
_AUTO_LARGEST = 0.4  # beyond, the gradient may be less noisy still, and yet runs end worse (docs, the experiment "mix")


def csm(
    model: AutoregressiveModel,
    x: Tensor,
    mix: Mix = 1.0,
    condition: Tensor | None = None,
    generator: Source = None,
    weighting: Weighting = "natural",
    compiled: bool | None = None,
) -> Tensor:
    """Composite score matching (paper, Eq. 5), and the family of unbiased objectives that it belongs to.

    Without noise, at ``mix=1``:

    .. math:: J = \\mathbb{E} \\sum_d \\tfrac12 s_d^2 + \\partial_{x_d} s_d

    With a ladder (paper, Appendix C.2) the context reads :math:`\\hat x = x + \\sigma_L \\epsilon`, the scalar is
    :math:`\\tilde x_d = x_d + \\sigma \\epsilon'_d` at a level drawn for each row and dimension. Since the noise is
    known, Stein's identity :math:`\\mathbb{E}\\, \\partial s_d = \\mathbb{E}\\, s_d \\epsilon'_d / \\sigma` gives, for
    any mix :math:`a`, an objective of the same expectation but another variance:

    .. math:: J_a = \\mathbb{E} \\sum_d \\omega(\\sigma) \\big[ \\tfrac12 s_d^2 + a\\, \\partial_{x_d} s_d
        + (1 - a)\\, s_d \\epsilon'_d / \\sigma \\big]

    :math:`a = 1` is the paper's CSM and :math:`a = 0` is denoising score matching up to a constant.

    Arguments:
        model: The model.
        x: Data, ``(B, D)``.
        mix: :math:`a`; ``"auto"`` chooses it for each noise level, from 0 to 0.4, so that the gradient has the least
            variance.
        condition: What the model is conditioned on.
        generator: Source of the noise.
        weighting: :math:`\\omega`: ``"natural"``, under which the head's network regresses targets of unit size, or
            ``"sigma2"``, :math:`\\sigma^2` as in NCSN.
        compiled: Whether the walk of a :class:`ScoreHead` is compiled; ``None``: in C on the processor, if a compiler
            is found (see :func:`arcsm.fused.fused_score_matching`).

    Raises:
        ValueError: for a mix other than 1 without a noise ladder.
    """
    z = model.standardise(x)
    if model.noise is None:
        if mix != 1.0:
            raise ValueError(f"mix: without a noise ladder only 1 (plain CSM) is possible, got {mix}")
        one, zero = z.new_ones(()), z.new_zeros(())
        scalars, weight = _known(model, z, one)
        return _score_matching(model, model.context(z, condition), scalars, None, weight, one, zero, compiled)
    context_input, noisy, sigma, noise, weight = _add_noise(model, z, generator, weighting)
    context, ratio = model.context(context_input, condition), noise / sigma
    if mix == "auto":
        fraction = _least_variance_mix(model, context.detach(), noisy, sigma, ratio, weight)
    else:
        fraction = torch.full_like(sigma, float(mix))
    linear = (1.0 - fraction) * ratio
    return _score_matching(model, context, noisy, sigma, weight, fraction, linear, compiled)


def dsm(
    model: AutoregressiveModel,
    x: Tensor,
    sigma: float | None = None,
    condition: Tensor | None = None,
    generator: Source = None,
    weighting: Weighting = "natural",
    joint: bool = False,
    compiled: bool | None = None,
) -> Tensor:
    """Denoising score matching of each conditional.

    .. math:: J = \\mathbb{E} \\sum_d \\omega(\\sigma)\\,
        \\tfrac12 \\big( s_d(\\tilde x) + \\epsilon_d / \\sigma \\big)^2

    Arguments:
        model: The model.
        x: Data, ``(B, D)``.
        sigma: One noise level for all dimensions, contexts included, in standardised units and with weight 1. By
            default the levels of the model's ladder, as in :func:`csm`.
        condition: What the model is conditioned on.
        generator: Source of the noise.
        weighting: As in :func:`csm`, for the ladder.
        joint: With ``sigma``, match :math:`\\nabla_x \\log q(x)` of a normalised head, not the scores of its
            conditionals.
        compiled: Whether the walk of a :class:`ScoreHead` is compiled; ``None``: in C on the processor, if a compiler
            is found (see :func:`arcsm.fused.fused_score_matching`).

    References:
        A Connection Between Score Matching and Denoising Autoencoders (Vincent, 2011)

    Raises:
        ValueError: for a model without a ladder and no ``sigma``, ``joint`` without ``sigma`` or for a
            :class:`ScoreHead`, or missing values at one ``sigma``.
    """
    z = model.standardise(x)
    if sigma is None:
        if model.noise is None:
            raise ValueError("sigma: expected a number, as this model has no noise ladder")
        if joint:
            raise ValueError("joint: the levels of a ladder are of one value each; give dsm a sigma")
        context_input, noisy, level, noise, weight = _add_noise(model, z, generator, weighting)
        context, ratio, zero = model.context(context_input, condition), noise / level, torch.zeros_like(level)
        loss = _score_matching(model, context, noisy, level, weight, zero, ratio, compiled)
        return loss + 0.5 * (weight * ratio.square()).sum(-1).mean()
    if not sigma > 0.0:
        raise ValueError(f"sigma: expected a positive number, got {sigma}")
    _check_complete(z)
    noise = normal_like(z, generator)
    field = _field(model, z + sigma * noise, condition, joint, None if model.noise is None else sigma)[0]
    return denoising_score_matching(field, noise, sigma)


def ssm(
    model: AutoregressiveModel,
    x: Tensor,
    slices: int = 1,
    projections: Projections = "rademacher",
    variance_reduced: bool = True,
    condition: Tensor | None = None,
    generator: Source = None,
    joint: bool | None = None,
) -> Tensor:
    """Sliced score matching with random projections :math:`v`.

    .. math:: J = \\mathbb{E} \\big[ v^\\top \\nabla_x (v^\\top s) + \\tfrac12 (v^\\top s)^2 \\big]

    (variance-reduced: :math:`\\tfrac12 \\lVert s \\rVert^2` in place of the square). Averaged over :math:`v`, it is
    :func:`sm` of the same field. With a ladder it is done at the smallest noise level.

    Arguments:
        model: The model.
        x: Data, ``(B, D)``.
        slices: Projections for each row.
        projections: Their law; each has covariance :math:`I`.
        variance_reduced: Integrate the square over :math:`v` in closed form.
        condition: What the model is conditioned on.
        generator: Source of the projections (and of the noise).
        joint: The field :math:`s`: ``True`` for :math:`\\nabla_x \\log q(x)` (default of normalised heads), ``False``
            for the vector of conditional scores (default of a :class:`ScoreHead`; "SSM-AR" in the paper).

    References:
        Sliced Score Matching (Song, Garg, Shi and Ermon, 2019), https://arxiv.org/abs/1905.07088

    Raises:
        ValueError: for missing values, or ``joint=True`` for a :class:`ScoreHead`.
    """
    field, z = _field_at_smallest_noise(model, x, condition, generator, joint)
    return sliced_score_matching(field, z, slices, projections, variance_reduced, generator)


def sm(
    model: AutoregressiveModel,
    x: Tensor,
    condition: Tensor | None = None,
    generator: Source = None,
    joint: bool | None = None,
) -> Tensor:
    """Score matching with the exact trace, by ``D`` backward passes.

    .. math:: J = \\mathbb{E} \\big[ \\tfrac12 \\lVert s \\rVert^2 + \\mathrm{tr}(\\nabla_x s) \\big]

    Arguments and errors as in :func:`ssm`.

    References:
        Estimation of Non-Normalized Statistical Models by Score Matching (Hyvärinen, 2005)
    """
    field, z = _field_at_smallest_noise(model, x, condition, generator, joint)
    return exact_score_matching(field, z)


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
        terms = model.head.log_density(projection, z.flatten(), sigma)
    else:
        accuracy = Accuracy(tol, max_evaluations)
        terms = Conditionals(model.head, projection, path, "quadrature", accuracy).differentiable_log_prob(z.flatten())
    terms = terms.view_as(z) - torch.log(model.scale)
    return -(terms * known if model.context.missing else terms).sum() / len(z)


OBJECTIVES: Mapping[str, Callable[..., Tensor]] = {"csm": csm, "dsm": dsm, "ssm": ssm, "sm": sm, "mle": mle}


# What they share ----------------------------------------------------------------------------------------------------


def _add_noise(
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
    noisy, weight = _known(model, z + sigma * noise, weight)
    return context_input, noisy, sigma, noise, weight


def _known(model: AutoregressiveModel, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values and their weights: where a value is missing, any value with weight zero."""
    if not model.context.missing:
        return z, weight
    known = ~z.isnan()
    return torch.where(known, z, 0.0), weight * known


def _score_matching(
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
    if isinstance(model.head, ScoreHead) and model.head.is_plain and not z.requires_grad:
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


def _least_variance_mix(
    model: AutoregressiveModel, context: Tensor, z: Tensor, sigma: Tensor, ratio: Tensor, weight: Tensor
) -> Tensor:
    """The mix, up to a largest one, that minimises the variance of the gradient at each noise level, ``(B, D)``.

    The gradient (by the head's projection of the context) is g_0 + a g_1 with E g_1 = 0, so the best a is
    -E<g_0, g_1> / E|g_1|^2, here from the points of the batch at similar noise. Each half of the rows uses the
    estimate of the other half: a is then independent of the points it is used on, and the objective unbiased.
    """
    assert model.noise is not None
    rows = min(len(z), max(2, _AUTO_POINTS // model.features))
    with torch.no_grad():
        projection = model.head.project(context[:rows]).flatten(0, -2)
    with torch.enable_grad():
        projection.requires_grad_()
        s, ds = model.head.evaluate(projection, z[:rows].flatten(), sigma[:rows].flatten())
        by_s = torch.autograd.grad(s.sum(), projection, retain_graph=True)[0]
        by_ds = torch.autograd.grad(ds.sum(), projection)[0]
    s, r, w = s.detach(), ratio[:rows].flatten(), weight[:rows].flatten()
    g1 = w[:, None] * (by_ds - r[:, None] * by_s)
    product = (((s + r) * w)[:, None] * by_s * g1).sum(-1)
    square = g1.square().sum(-1)

    span = math.log(model.noise.sigma_max / model.noise.sigma_min) or 1.0
    position = torch.log(model.noise.sigma_max / sigma) / span
    bins = (position * _AUTO_BINS).long().clamp(0, _AUTO_BINS - 1)  # (B, D)
    half = (torch.arange(len(z), device=z.device) % 2)[:, None]
    own = (half * _AUTO_BINS + bins)[:rows].flatten()
    products = torch.zeros(2 * _AUTO_BINS, dtype=z.dtype, device=z.device).index_add_(0, own, product)
    squares = torch.zeros_like(products).index_add_(0, own, square)
    best = (-products / squares.clamp(min=1e-30)).clamp(0.0, _AUTO_LARGEST)
    return best[(1 - half) * _AUTO_BINS + bins]


def _field_at_smallest_noise(
    model: AutoregressiveModel,
    x: Tensor,
    condition: Tensor | None,
    generator: Source,
    joint: bool | None,
) -> tuple[Tensor, Tensor]:
    z = model.standardise(x)
    _check_complete(z)
    sigma = None if model.noise is None else model.noise.sigma_min
    if sigma is not None:
        z = z + sigma * normal_like(z, generator)
    return _field(model, z, condition, model.head.normalised if joint is None else joint, sigma)


def _check_complete(z: Tensor) -> None:
    if bool(z.isnan().any()):
        raise ValueError("x: holds missing values, of which a field has no scores; use csm, mle, or dsm without sigma")


def _field(
    model: AutoregressiveModel, z: Tensor, condition: Tensor | None, joint: bool, sigma: float | None
) -> tuple[Tensor, Tensor]:
    """A field of scores ``(B, D)`` and the leaf ``z`` that it can be differentiated by."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        projection = model.head.project(model.context(z, condition))
        if not joint:
            return model.head.score(projection, z, sigma), z
        if not isinstance(model.head, NormalisedHead):
            raise ValueError(f"joint: the joint score needs a normalised head, got a {type(model.head).__name__}")
        if not model.head.has_score:
            model.head.score(projection, z, sigma)  # says why not
        log_prob = model.head.log_density(projection, z, sigma).sum()
        return torch.autograd.grad(log_prob, z, create_graph=True)[0], z
