"""Calibration: whether probability integral transforms are uniform."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats
from torch import Tensor


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
