"""How well a score separates outliers from inliers."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor


def auroc(inliers: Tensor, outliers: Tensor) -> float:
    """Return the area under the receiver operating characteristic of finite scores ``(N,)`` and ``(M,)``.

    It is the probability that an outlier scores higher than an inlier, 0.5 for an uninformative score, and below 0.5 if
    the sign is wrong.

    Example:
        >>> import torch
        >>> auroc(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 0.5]))
        0.75
    """
    negative, positive = _checked("inliers", inliers), _checked("outliers", outliers)
    return float(_areas(negative[None], positive[None])[0])


def auroc_standard_error(inliers: Tensor, outliers: Tensor, resamples: int = 200, seed: int = 0) -> float:
    """Return the bootstrap standard error of :func:`auroc`, resampling inliers and outliers separately."""
    if resamples < 2:
        raise ValueError(f"resamples: expected at least 2, got {resamples}")
    negative, positive = _checked("inliers", inliers), _checked("outliers", outliers)
    rng = np.random.default_rng(seed)
    resampled = [rng.choice(scores, (resamples, len(scores))) for scores in (negative, positive)]
    return float(np.std(_areas(*resampled), ddof=1))


def _areas(inliers: NDArray[np.float64], outliers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the areas for rows of scores, ``(R, N)`` and ``(R, M)`` to ``(R,)``, by Mann and Whitney's statistic."""
    count, outlier_count = inliers.shape[1], outliers.shape[1]
    ranks = stats.rankdata(np.concatenate([inliers, outliers], 1), axis=1)  # ties share their mean rank
    inliers_below = ranks[:, count:].mean(1) - 0.5 * (outlier_count + 1)  # mean over the outliers
    return np.asarray(inliers_below / count, dtype=np.float64)


def _checked(name: str, scores: Tensor) -> NDArray[np.float64]:
    values = scores.detach().double().cpu().numpy()
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"{name}: expected finite scores of shape (N,), at least one, got {tuple(scores.shape)}")
    return values
