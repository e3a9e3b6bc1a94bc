"""Score matching of any vector of scores, whatever network computes it: exact, sliced and denoising.

Scores are a tensor ``(B, D)`` computed from points ``z (B, D)`` that require gradients. The objectives :func:`sm`,
:func:`ssm` and :func:`dsm` of :mod:`arcsm.objectives` apply these functions to an :class:`~arcsm.AutoregressiveModel`
and give the references.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from arcsm._runtime.random import Source, normal_like, rademacher_like

Projections = Literal["gaussian", "rademacher", "sphere"]


@torch.enable_grad()
def exact_score_matching(scores: Tensor, z: Tensor) -> Tensor:
    """Score matching with the exact trace, by ``D`` backward passes (Hyvärinen, 2005).

    .. math:: J = \\mathbb{E} \\big[ \\tfrac12 \\lVert s \\rVert^2 + \\mathrm{tr}(\\nabla_z s) \\big]
    """
    trace = z.new_zeros(len(z))
    for d in range(z.shape[1]):
        trace = trace + torch.autograd.grad(scores[:, d].sum(), z, create_graph=True)[0][:, d]
    return (0.5 * scores.square().sum(-1) + trace).mean()


@torch.enable_grad()
def sliced_score_matching(
    scores: Tensor,
    z: Tensor,
    slices: int = 1,
    projections: Projections = "rademacher",
    variance_reduced: bool = True,
    generator: Source = None,
) -> Tensor:
    """Sliced score matching with ``slices`` random projections :math:`v` for each row (Song et al., 2019).

    .. math:: J = \\mathbb{E} \\big[ v^\\top \\nabla_z (v^\\top s) + \\tfrac12 (v^\\top s)^2 \\big]

    The variance-reduced form has :math:`\\tfrac12 \\lVert s \\rVert^2` in place of the square.
    """
    if slices < 1:
        raise ValueError(f"slices: expected at least 1, got {slices}")
    total = z.new_zeros(())
    for _ in range(slices):
        v = _projection_like(z, projections, generator)
        projected = (v * scores).sum(-1)  # (B,)
        curvature = (torch.autograd.grad(projected.sum(), z, create_graph=True)[0] * v).sum(-1)
        square = scores.square().sum(-1) if variance_reduced else projected.square()
        total = total + (curvature + 0.5 * square).mean()
    return total / slices


def denoising_score_matching(scores: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Denoising score matching of the scores at ``z + sigma * noise`` (Vincent, 2011).

    .. math:: J = \\mathbb{E}\\, \\tfrac12 \\lVert s(z + \\sigma \\epsilon) + \\epsilon / \\sigma \\rVert^2
    """
    return 0.5 * (scores + noise / sigma).square().sum(-1).mean()


def _projection_like(z: Tensor, law: Projections, generator: Source) -> Tensor:
    """Draw directions with identity covariance, ``(B, D)``."""
    if law == "rademacher":
        return rademacher_like(z, generator)
    if law not in ("gaussian", "sphere"):
        raise ValueError(f'projections: expected "gaussian", "rademacher" or "sphere", got {law!r}')
    v = normal_like(z, generator)
    return v if law == "gaussian" else v / v.norm(dim=-1, keepdim=True) * math.sqrt(z.shape[-1])
