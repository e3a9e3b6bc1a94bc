"""Composite score matching (paper, Eq. 5), and the family of objectives between it and denoising score matching."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from arcsm._runtime.random import Source
from arcsm.model import AutoregressiveModel
from arcsm.objectives.base import Weighting, add_noise, mask_missing, score_matching_loss

Mix = float | Literal["auto"]


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
            is found (see :func:`arcsm.objectives.fused.fused_score_matching`).

    Raises:
        ValueError: for a mix other than 1 without a noise ladder.
    """
    z = model.standardise(x)
    if model.noise is None:
        if mix != 1.0:
            raise ValueError(f"mix: without a noise ladder only 1 (plain CSM) is possible, got {mix}")
        one, zero = z.new_ones(()), z.new_zeros(())
        scalars, weight = mask_missing(model, z, one)
        return score_matching_loss(model, model.context(z, condition), scalars, None, weight, one, zero, compiled)
    context_input, noisy, sigma, noise, weight = add_noise(model, z, generator, weighting)
    context, ratio = model.context(context_input, condition), noise / sigma
    if mix == "auto":
        fraction = _least_variance_mix(model, context.detach(), noisy, sigma, ratio, weight)
    else:
        fraction = torch.full_like(sigma, float(mix))
    linear = (1.0 - fraction) * ratio
    return score_matching_loss(model, context, noisy, sigma, weight, fraction, linear, compiled)


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
        s, ds = model.head.projected_score_and_derivative(projection, z[:rows].flatten(), sigma[:rows].flatten())
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
