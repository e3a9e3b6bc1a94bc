"""Likelihoods: means with standard errors, bits per dimension, reference densities, and noise for fair comparisons."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from arcsm.model import AutoregressiveModel


def add_smallest_noise(model: AutoregressiveModel, x: Tensor, seed: int) -> Tensor:
    """Add the smallest noise of the model's ladder to rows ``(N, D)``, whose density the model then represents."""
    if model.noise is None:
        return x
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x + model.noise.sigma_min * model.scale.cpu() * noise


def gaussian_mixture_scores(train: Tensor, valid: Tensor, test: Tensor, seed: int = 0) -> dict[str, float]:
    """Return the mean log likelihood on ``test`` of two simple densities by scikit-learn, in nats.

    They are a Gaussian, and a full-covariance Gaussian mixture whose number of components (up to 20) and
    regularisation are chosen on ``valid``.
    """
    rows = {name: t.double().numpy() for name, t in (("train", train), ("valid", valid), ("test", test))}
    scale = float(rows["train"].var(0).mean())

    def best(choices: Sequence[int]) -> GaussianMixture:
        fitted = [
            GaussianMixture(components, reg_covar=regularisation * scale, random_state=seed).fit(rows["train"])
            for components in choices
            for regularisation in (1e-4, 1e-3, 1e-2)
            if components * 2 <= len(train)
        ]
        return max(fitted, key=lambda mixture: float(mixture.score(rows["valid"])))

    gaussian, mixture = best([1]), best([2, 3, 5, 10, 15, 20])
    return {
        "Gaussian": float(gaussian.score(rows["test"])),
        f"Gaussian mixture, full covariance, {mixture.n_components} components": float(mixture.score(rows["test"])),
    }


def mean_and_standard_error(values: Tensor) -> tuple[float, float | None]:
    """Return the mean of values ``(N,)`` and its standard error, which is ``None`` for a single value."""
    numbers = values.double().cpu().numpy()
    error = float(np.std(numbers, ddof=1) / np.sqrt(len(numbers))) if len(numbers) > 1 else None
    return float(np.mean(numbers)), error


def bits_per_dim(log_prob: Tensor, features: int, levels: int) -> Tensor:
    """Convert log densities ``(N,)`` in nats of image values in [-1, 1) to bits per dimension, ``(N,)``.

    For densities of dequantised values it is an upper bound on the bits per dimension of the ``levels`` grey levels.
    """
    return -log_prob / (features * math.log(2.0)) + math.log2(0.5 * levels)
