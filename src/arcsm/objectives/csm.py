"""Composite score matching (paper, Eq. 5), and the family of objectives between it and denoising score matching."""

import math
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from arcsm._runtime.conditions import Condition
from arcsm._runtime.random import Source
from arcsm.heads import Head
from arcsm.model import AutoregressiveModel
from arcsm.objectives.base import (
    NoisyBatch,
    Weighting,
    joined_terms,
    loss_weight,
    negative_log_prob,
    noisy_batches,
    score_matching_loss,
    standardised_rows,
    weighted_values,
)
from arcsm.objectives.levels import LevelHeads

Mix = float | Literal["auto"]

_AUTO_BINS = 5  # bins of noise levels, each with its own mix
_AUTO_POINTS = 8192  # points of a batch from which the mixes are estimated
_AUTO_MAX_MIX = 0.4  # larger mixes may give less noisy gradients and yet worse models (docs, the experiment "mix")


def csm(
    model: AutoregressiveModel,
    x: Tensor,
    mix: Mix = 1.0,
    condition: Condition | None = None,
    generator: Source = None,
    weighting: Weighting = "natural",
    compiled: bool | None = None,
) -> Tensor:
    """Composite score matching (paper, Eq. 5), and the family of unbiased objectives that it belongs to.

    Without noise, and with ``mix=1``:

    .. math:: J = \\mathbb{E} \\sum_d \\tfrac12 s_d^2 + \\partial_{x_d} s_d

    With a ladder (paper, Appendix C.2), the context reads :math:`\\hat x = x + \\sigma_L \\epsilon`, and the scalar is
    :math:`\\tilde x_d = x_d + \\sigma \\epsilon'_d` at a noise level drawn for each row and dimension. By Stein's
    identity, :math:`\\mathbb{E}\\, \\partial s_d = \\mathbb{E}\\, s_d \\epsilon'_d / \\sigma`, so every mix :math:`a`
    gives an objective with the same expectation, but another variance:

    .. math:: J_a = \\mathbb{E} \\sum_d \\omega(\\sigma) \\big[ \\tfrac12 s_d^2 + a\\, \\partial_{x_d} s_d
        + (1 - a)\\, s_d \\epsilon'_d / \\sigma \\big]

    :math:`a = 1` is the paper's CSM; :math:`a = 0` is denoising score matching up to a constant.

    Nominal columns of a :class:`~arcsm.MixedHead` have no score; their negative log probability is added.

    Arguments:
        x: Data, ``(B, D)``.
        mix: :math:`a`, which must be 1 without a ladder; ``"auto"`` chooses, for each noise level, the value between 0
            and 0.4 that minimises the variance of the gradient.
        condition: Condition of each row, as in :meth:`arcsm.AutoregressiveModel.score`.
        generator: Source of the noise.
        weighting: :math:`\\omega`: ``"natural"``, for which the head's network regresses targets of unit size, or
            ``"sigma2"``, :math:`\\sigma^2` as in NCSN.
        compiled: Whether the fused pass of a :class:`ScoreHead` is compiled. ``None``: in C on a processor, if there is
            a C compiler (see :func:`arcsm.objectives.fused.fused_score_matching`).
    """
    z = standardised_rows(model, x)
    is_number = isinstance(mix, Real) and math.isfinite(mix)
    if mix != "auto" and not is_number:
        raise ValueError(f'mix: expected a finite number or "auto", got {mix!r:.60}')
    if model.noise is None:
        if mix != 1.0:
            raise ValueError(f"mix: without a noise ladder only 1 (plain CSM) is possible, got {mix}")
        return _plain_csm(model, z, condition, generator, compiled)
    loss = z.new_zeros(())
    for head, batch in noisy_batches(model, z, condition, generator):
        if isinstance(head, LevelHeads) or head.discrete:
            loss = loss + negative_log_prob(head, batch.context, batch.x, batch.weight)
            continue
        weight, x_tilde = batch.weight * loss_weight(head, batch.sigma, weighting), batch.x_tilde
        a = _least_variance_mix(model, head, batch, weight) if mix == "auto" else float(mix)
        linear = (1.0 - a) * (batch.noise / batch.sigma)
        loss = loss + score_matching_loss(head, batch.context, x_tilde, batch.sigma, weight, a, linear, compiled)
    return loss / len(z)


def _plain_csm(
    model: AutoregressiveModel, z: Tensor, condition: Condition | None, generator: Source, compiled: bool | None
) -> Tensor:
    """Return the loss without noise, of standardised rows ``(B, D)``."""
    terms = model.training_terms(z, condition, generator)
    zero = loss = z.new_zeros(())
    values, weights = weighted_values(model, terms, terms.select(z), z.new_ones(()))
    for head, its in joined_terms(model, terms, z):
        part = slice(None) if its is None else its
        context, x, weight = terms.context[part], values[part], weights[part]
        if isinstance(head, LevelHeads) or head.discrete:
            loss = loss + negative_log_prob(head, context, x, weight)
        else:
            loss = loss + score_matching_loss(head, context, x, None, weight, 1.0, zero, compiled)
    return loss / len(z)


def _least_variance_mix(model: AutoregressiveModel, head: Head, batch: NoisyBatch, weight: Tensor) -> Tensor:
    """Return the mix, up to a maximum, that minimises the variance of the gradient at each noise level, ``(N,)``.

    The gradient (by the head's projection of the context) is g_0 + a g_1 with E g_1 = 0, so the best a is
    -E<g_0, g_1> / E|g_1|^2, estimated from the points of the batch at similar noise. Each half of the rows uses the
    estimate of the other half: a is then independent of the points it is applied to, and the objective unbiased.
    """
    assert model.noise is not None
    some = slice(max(2, _AUTO_POINTS // model.features) * model.features)
    sigma, weight = batch.sigma[some], weight[some]
    ratio = batch.noise[some] / sigma  # eps' / sigma
    with torch.no_grad():
        projection = head.project(batch.context.detach()[some])
    with torch.enable_grad():
        projection.requires_grad_()
        s, ds = head.projected_score_and_derivative(projection, batch.x_tilde[some], sigma)
        grad_s = torch.autograd.grad(s.sum(), projection, retain_graph=True)[0]
        grad_ds = torch.autograd.grad(ds.sum(), projection)[0]
    s = s.detach()
    g1 = weight[:, None] * (grad_ds - ratio[:, None] * grad_s)
    product = (((s + ratio) * weight)[:, None] * grad_s * g1).sum(-1)  # <g_0, g_1>
    square = g1.square().sum(-1)

    log_range = math.log(model.noise.sigma_max / model.noise.sigma_min) or 1.0
    position = torch.log(model.noise.sigma_max / batch.sigma) / log_range
    bins = (position * _AUTO_BINS).long().clamp(0, _AUTO_BINS - 1)  # (N,)
    half = batch.row % 2
    index = (half * _AUTO_BINS + bins)[some]
    products = product.new_zeros(2 * _AUTO_BINS).index_add_(0, index, product)
    squares = torch.zeros_like(products).index_add_(0, index, square)
    best = (-products / squares.clamp(min=1e-30)).clamp(0.0, _AUTO_MAX_MIX)
    return best[(1 - half) * _AUTO_BINS + bins]
