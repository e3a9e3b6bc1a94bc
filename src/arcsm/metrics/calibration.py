"""Calibration: uniformity of probability integral transforms (PIT values)."""

from dataclasses import dataclass

from scipy import stats
from torch import Tensor


@dataclass(frozen=True)
class Uniformity:
    """Result of a test of PIT values for uniformity.

    Attributes:
        statistic: Kolmogorov-Smirnov distance between their distribution and the uniform.
        p_value: p-value of that distance for independent values.
        count: Number of values.
    """

    statistic: float
    p_value: float
    count: int


def pit_uniformity(u: Tensor) -> Uniformity:
    """Test PIT values ``(*)`` from :meth:`AutoregressiveModel.cdf` for uniformity (Kolmogorov-Smirnov)."""
    values = u.flatten().double().cpu().numpy()
    result = stats.kstest(values, "uniform")
    return Uniformity(float(result.statistic), float(result.pvalue), len(values))
