"""Numbers that say how good a density is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from sklearn.mixture import GaussianMixture
from torch import Tensor

from arcsm.model import AutoregressiveModel


@dataclass(frozen=True)
class Uniformity:
    """How uniform PIT values are.

    Attributes:
        statistic: Kolmogorov-Smirnov distance between their distribution and the uniform.
        p_value: Of that distance, for as many independent values as were given.
        count: Number of values.
    """

    statistic: float
    p_value: float
    count: int


def pit_uniformity(u: Tensor) -> Uniformity:
    """Kolmogorov-Smirnov test of PIT values ``(*)`` (from :meth:`AutoregressiveModel.cdf`) against the uniform."""
    values = u.flatten().double().cpu().numpy()
    result = stats.kstest(values, "uniform")
    return Uniformity(float(result.statistic), float(result.pvalue), len(values))


def add_smallest_noise(model: AutoregressiveModel, x: Tensor, seed: int) -> Tensor:
    """Rows plus the smallest noise of the model's ladder: what its density is a density of, ``(N, D)``."""
    if model.noise is None:
        return x
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x + model.noise.sigma_min * model.scale.cpu() * noise


def gaussian_mixture_scores(train: Tensor, valid: Tensor, test: Tensor, seed: int = 0) -> dict[str, float]:
    """Mean held-out log likelihood in nats of what one would try first.

    A Gaussian, and a full-covariance Gaussian mixture whose number of components (up to 20) and regularisation do
    best on ``valid``; both by scikit-learn.
    """
    rows = {name: t.double().numpy() for name, t in (("train", train), ("valid", valid), ("test", test))}
    scale = float(rows["train"].var(0).mean())

    def best(choices: Sequence[int]) -> GaussianMixture:
        fitted = [
            GaussianMixture(components, reg_covar=share * scale, random_state=seed).fit(rows["train"])
            for components in choices
            for share in (1e-4, 1e-3, 1e-2)
            if components * 2 <= len(train)
        ]
        return max(fitted, key=lambda mixture: float(mixture.score(rows["valid"])))

    gaussian, mixture = best([1]), best([2, 3, 5, 10, 15, 20])
    return {
        "Gaussian": float(gaussian.score(rows["test"])),
        f"Gaussian mixture, full covariance, {mixture.n_components} components": float(mixture.score(rows["test"])),
    }


def summary(values: Tensor) -> tuple[float, float | None]:
    """Mean of values ``(N,)`` and its standard error, which for a single one is not known: ``None``."""
    numbers = values.double().cpu().numpy()
    error = float(np.std(numbers, ddof=1) / np.sqrt(len(numbers))) if len(numbers) > 1 else None
    return float(np.mean(numbers)), error


def bits_per_dim(log_prob: Tensor, features: int, levels: int) -> Tensor:
    """Bits a value of images with so many levels, from log densities ``(N,)`` in nats of values in [-1, 1), ``(N,)``.

    For densities of dequantised values it is an upper bound on the bits of the levels themselves.
    """
    return -log_prob / (features * math.log(2.0)) + math.log2(0.5 * levels)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Energy distance between two samples ``(N, D)`` and ``(M, D)``, unbiased: about zero (or below) if they agree.

    .. math:: 2\\, \\mathbb{E} \\lVert A - B \\rVert
        - \\mathbb{E} \\lVert A - A' \\rVert - \\mathbb{E} \\lVert B - B' \\rVert

    References:
        Energy statistics: A class of statistics based on distances (Székely and Rizzo, 2013)
    """
    a, b = a.double(), b.double()
    return 2.0 * _distances(a, b) / (len(a) * len(b)) - sum(_distances(x, x) / (len(x) * (len(x) - 1)) for x in (a, b))


def _distances(a: Tensor, b: Tensor) -> float:
    """Sum of all distances, some rows at a time."""
    return sum(float(torch.cdist(part, b, compute_mode="donot_use_mm_for_euclid_dist").sum()) for part in a.split(512))


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 256, seed: int = 0) -> float:
    """Sliced Wasserstein-1 distance between two samples of the same size, ``(N, D)`` each, in data units.

    The mean over random directions of the one-dimensional distance, which sorting gives exactly.

    Raises:
        ValueError: for samples of different shapes.

    References:
        Sliced and Radon Wasserstein Barycenters of Measures (Bonneel, Rabin, Peyré and Pfister, 2015)
    """
    if a.shape != b.shape:
        raise ValueError(f"a, b: expected samples of the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    v = torch.randn(a.shape[1], directions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    v = (v / v.norm(dim=0)).to(a.device)
    return float(((a.double() @ v).sort(0).values - (b.double() @ v).sort(0).values).abs().mean())
