"""Denoising score matching."""

from torch import Tensor

from arcsm._runtime.conditions import Condition
from arcsm._runtime.random import Source, normal_like
from arcsm.model import AutoregressiveModel
from arcsm.objectives.base import (
    Weighting,
    check_no_missing,
    differentiable_scores,
    loss_weight,
    negative_log_prob,
    noisy_batches,
    score_matching_loss,
    standardised_rows,
)
from arcsm.objectives.levels import LevelHeads
from arcsm.objectives.score_matching import denoising_score_matching


def dsm(
    model: AutoregressiveModel,
    x: Tensor,
    sigma: float | None = None,
    condition: Condition | None = None,
    generator: Source = None,
    weighting: Weighting = "natural",
    joint: bool | None = False,
    compiled: bool | None = None,
) -> Tensor:
    """Denoising score matching of each conditional.

    .. math:: J = \\mathbb{E} \\sum_d \\omega(\\sigma)\\,
        \\tfrac12 \\big( s_d(\\tilde x) + \\epsilon_d / \\sigma \\big)^2

    Other arguments are as in :func:`csm`.

    Arguments:
        sigma: One noise level for all dimensions, contexts included, in standardised units and with weight 1; no value
            may then be missing. Default: the levels of the model's ladder, as in :func:`csm`.
        joint: With ``sigma`` only, match :math:`\\nabla_x \\log q(x)` of a normalised head instead of the scores of its
            conditionals.

    References:
        A Connection Between Score Matching and Denoising Autoencoders (Vincent, 2011)
    """
    z = standardised_rows(model, x)
    if sigma is None:
        if model.noise is None:
            raise ValueError("sigma: expected a number, because the model has no noise ladder")
        if joint:
            raise ValueError("joint: a ladder has a noise level for each value; give dsm a sigma")
        loss = z.new_zeros(())
        for head, batch in noisy_batches(model, z, condition, generator):
            if isinstance(head, LevelHeads) or head.discrete:
                loss = loss + negative_log_prob(head, batch.context, batch.x, batch.weight)
                continue
            weight = batch.weight * loss_weight(head, batch.sigma, weighting)
            ratio = batch.noise / batch.sigma
            matched = score_matching_loss(head, batch.context, batch.x_tilde, batch.sigma, weight, 0.0, ratio, compiled)
            loss = loss + matched + 0.5 * (weight * ratio.square()).sum()
        return loss / len(z)
    if not sigma > 0.0:
        raise ValueError(f"sigma: expected a positive number, got {sigma}")
    check_no_missing(z)
    noise = normal_like(z, generator)
    head_sigma = None if model.noise is None else sigma
    scores, _ = differentiable_scores(model, z + sigma * noise, condition, bool(joint), head_sigma, generator)
    return denoising_score_matching(scores, noise, sigma)
