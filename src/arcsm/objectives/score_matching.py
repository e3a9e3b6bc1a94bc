"""Score matching of any field of scores, whatever network it comes from: exact, sliced and denoising.

A field is a tensor ``s`` of shape ``(B, D)`` computed from points ``z (B, D)`` that require gradients. The objectives
in :mod:`arcsm.objectives` are these on the fields of an :class:`~arcsm.AutoregressiveModel`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from arcsm._runtime.random import Source, normal_like, rademacher_like

Projections = Literal["gaussian", "rademacher", "sphere"]


@torch.enable_grad()
def exact_score_matching(field: Tensor, z: Tensor) -> Tensor:
    """Score matching with the exact trace, by ``D`` backward passes.

    .. math:: J = \\mathbb{E} \\big[ \\tfrac12 \\lVert s \\rVert^2 + \\mathrm{tr}(\\nabla_z s) \\big]

    References:
        Estimation of Non-Normalized Statistical Models by Score Matching (Hyvärinen, 2005)
    """
    trace = z.new_zeros(len(z))
    for d in range(z.shape[1]):
        trace = trace + torch.autograd.grad(field[:, d].sum(), z, create_graph=True)[0][:, d]
    return (0.5 * field.square().sum(-1) + trace).mean()


@torch.enable_grad()
def sliced_score_matching(
    field: Tensor,
    z: Tensor,
    slices: int = 1,
    projections: Projections = "rademacher",
    variance_reduced: bool = True,
    generator: Source = None,
) -> Tensor:
    """Sliced score matching with ``slices`` random projections :math:`v` for each row.

    .. math:: J = \\mathbb{E} \\big[ v^\\top \\nabla_z (v^\\top s) + \\tfrac12 (v^\\top s)^2 \\big]

    (variance-reduced: :math:`\\tfrac12 \\lVert s \\rVert^2` in place of the square).

    Raises:
        ValueError: for fewer than one slice, or an unknown law of the projections.

    References:
        Sliced Score Matching (Song, Garg, Shi and Ermon, 2019), https://arxiv.org/abs/1905.07088
    """
    if slices < 1:
        raise ValueError(f"slices: expected at least 1, got {slices}")
    total = z.new_zeros(())
    for _ in range(slices):
        v = projection_like(z, projections, generator)
        along = (v * field).sum(-1)  # (B,)
        curvature = (torch.autograd.grad(along.sum(), z, create_graph=True)[0] * v).sum(-1)
        square = field.square().sum(-1) if variance_reduced else along.square()
        total = total + (curvature + 0.5 * square).mean()
    return total / slices


def denoising_score_matching(field: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Denoising score matching of a field at ``z + sigma * noise``.

    .. math:: J = \\mathbb{E}\\, \\tfrac12 \\lVert s(z + \\sigma \\epsilon) + \\epsilon / \\sigma \\rVert^2

    References:
        A Connection Between Score Matching and Denoising Autoencoders (Vincent, 2011)
    """
    return 0.5 * (field + noise / sigma).square().sum(-1).mean()


def projection_like(z: Tensor, law: Projections, generator: Source) -> Tensor:
    """Random directions of covariance one, ``(B, D)``."""
    if law == "rademacher":
        return rademacher_like(z, generator)
    v = normal_like(z, generator)
    if law == "gaussian":
        return v
    if law == "sphere":
        return v / v.norm(dim=-1, keepdim=True) * math.sqrt(z.shape[-1])
    raise ValueError(f'projections: expected "gaussian", "rademacher" or "sphere", got {law!r}')
