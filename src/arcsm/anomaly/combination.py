"""One outlier score from several, fitted to inliers alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

#: Scores by name, ``(N,)`` each.
Table = Mapping[str, Tensor]


class Combination:
    """Two-sided distance of rows from known inliers in several scores at once.

    Each score is mapped to normal scores by ``knots`` quantiles among the inliers, and linearly between them. Beyond
    the outermost quantile the map continues with the mean slope of that half. The combined score is the squared
    Mahalanobis distance with a shrunk covariance:

    .. math:: (z - \\bar z)^\\top\\, \\Sigma^{-1}\\, (z - \\bar z)

    Fit it on rows that the model was not trained on, since a model assigns slightly too much density to its training
    rows.

    References:
        A well-conditioned estimator for large-dimensional covariance matrices (Ledoit and Wolf, 2004)

    Attributes:
        columns_: Names of the scores.
        maps_: The map to normal scores of each column.
        covariance_: scikit-learn's estimate.

    Example:
        >>> inliers = {"a": torch.linspace(-1.0, 1.0, 101), "b": torch.linspace(-1.0, 1.0, 101) ** 3}
        >>> near, far, atypical = Combination().fit(inliers).score(
        ...     {"a": torch.tensor([0.5, 3.0, 0.5]), "b": torch.tensor([0.125, 27.0, -1.0])}
        ... ).tolist()
        >>> near < far and near < atypical
        True
    """

    def __init__(self, knots: int = 101) -> None:
        self.knots = knots

    def fit(self, inliers: Table) -> Self:
        """Fit the distribution of the scores of at least three inliers, all finite and no column nearly constant."""
        if self.knots < 2:
            raise ValueError(f"knots: expected at least 2, got {self.knots}")
        values = _matrix("inliers", inliers, tuple(inliers))
        if len(values) < 3:
            raise ValueError(f"inliers: expected at least 3 rows, got {len(values)}")
        maps = [NormalScoreMap.fit(column, min(self.knots, len(values))) for column in values.T]
        if constant := [name for name, to_normal in zip(inliers, maps, strict=True) if len(to_normal.x) < 2]:
            raise ValueError(f"inliers: {constant[0]} is the same for nearly all rows; leave it out")
        self.columns_, self.maps_ = tuple(inliers), maps
        from sklearn.covariance import LedoitWolf  # loads much else, which tables without a combination need not

        self.covariance_ = LedoitWolf().fit(self._transform(values))
        return self

    def score(self, table: Table) -> Tensor:
        """Return the squared distance of each row of a table with the same columns, all finite, ``(N,)``."""
        if not hasattr(self, "columns_"):
            raise ValueError("Combination: not fitted yet; call fit with the scores of inliers")
        return torch.from_numpy(self.covariance_.mahalanobis(self._transform(_matrix("table", table, self.columns_))))

    def _transform(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([to_normal(column) for to_normal, column in zip(self.maps_, values.T, strict=True)], 1)


@dataclass(frozen=True)
class NormalScoreMap:
    """An increasing, piecewise linear map that makes a sample approximately standard normal."""

    x: NDArray[np.float64]  # quantiles of the sample, ascending
    z: NDArray[np.float64]  # quantiles of the standard normal distribution
    slopes: tuple[float, float]  # below the first and above the last quantile

    @classmethod
    def fit(cls, sample: NDArray[np.float64], knots: int) -> Self:
        """Fit the map to a sample ``(N,)``; tied quantiles share their mean normal score."""
        probabilities = (np.arange(knots) + 0.5) / knots
        x, index = np.unique(np.quantile(sample, probabilities), return_inverse=True)
        z = np.bincount(index, stats.norm.ppf(probabilities)) / np.bincount(index)
        if len(x) < 2:
            return cls(x, z, (0.0, 0.0))
        below, above = len(x) // 2, (len(x) - 1) // 2
        slopes = (z[below] - z[0]) / (x[below] - x[0]), (z[-1] - z[above]) / (x[-1] - x[above])
        return cls(x, z, (float(slopes[0]), float(slopes[1])))

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = np.interp(values, self.x, self.z)
        below, above = np.minimum(values - self.x[0], 0.0), np.maximum(values - self.x[-1], 0.0)
        return inside + self.slopes[0] * below + self.slopes[1] * above


def _matrix(name: str, table: Table, columns: Sequence[str]) -> NDArray[np.float64]:
    """Return checked columns of a table as a matrix, ``(N, P)``."""
    if not columns or not set(columns) <= table.keys():
        raise ValueError(f"{name}: expected the columns {', '.join(columns) or '(at least one)'}, got {list(table)}")
    shapes = {tuple(table[column].shape) for column in columns}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise ValueError(f"{name}: expected columns of one length, got shapes {sorted(shapes)}")
    values = np.stack([table[column].double().cpu().numpy() for column in columns], 1)
    bad = ~np.isfinite(values).all(0)
    if bad.any():
        raise ValueError(f"{name}: {columns[int(bad.argmax())]} contains NaN or infinity")
    return values
