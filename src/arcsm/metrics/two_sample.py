"""Distances between two samples."""

import torch
from torch import Tensor


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Return an unbiased estimate of the energy distance between samples ``(N, D)`` and ``(M, D)``.

    It is about zero, or slightly negative, for samples of one distribution.

    .. math:: 2\\, \\mathbb{E} \\lVert A - B \\rVert
        - \\mathbb{E} \\lVert A - A' \\rVert - \\mathbb{E} \\lVert B - B' \\rVert

    References:
        Energy statistics: A class of statistics based on distances (Székely and Rizzo, 2013)
    """
    a, b = a.double(), b.double()
    return 2.0 * _distances(a, b) / (len(a) * len(b)) - sum(_distances(x, x) / (len(x) * (len(x) - 1)) for x in (a, b))


def _distances(a: Tensor, b: Tensor) -> float:
    return sum(float(torch.cdist(part, b, compute_mode="donot_use_mm_for_euclid_dist").sum()) for part in a.split(512))


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 256, seed: int = 0) -> float:
    """Return the sliced Wasserstein-1 distance between two samples of the same size, ``(N, D)`` each, in data units.

    It is the mean over random directions of the one-dimensional distance, which sorting gives exactly.

    References:
        Sliced and Radon Wasserstein Barycenters of Measures (Bonneel, Rabin, Peyré and Pfister, 2015)
    """
    if a.shape != b.shape:
        raise ValueError(f"a, b: expected samples of the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    v = torch.randn(a.shape[1], directions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    v = (v / v.norm(dim=0)).to(a.device)
    return float(((a.double() @ v).sort(0).values - (b.double() @ v).sort(0).values).abs().mean())
