"""How much noise a privacy budget needs.

All that is released of a table is a sequence of sums with Gaussian noise. However they are chosen, each after the
others, they are together as private as one sum with less noise.

References:
    Improving the Gaussian Mechanism for Differential Privacy (Balle and Wang, 2018), https://arxiv.org/abs/1805.06530
    Gaussian Differential Privacy (Dong, Roth and Su, 2019), https://arxiv.org/abs/1905.02383
"""

import math

from scipy.optimize import brentq
from scipy.stats import norm

_LEAST_NOISE, _MOST_NOISE = 1e-3, 1e8


def delta_of_noise(noise: float, epsilon: float) -> float:
    """Return the :math:`\\delta` of the Gaussian mechanism at an :math:`\\epsilon` (Balle and Wang, Theorem 8).

    Arguments:
        noise: The standard deviation of the noise divided by the sensitivity, the most by which one row changes a sum.
        epsilon: The privacy loss that is exceeded with a probability of about :math:`\\delta`.
    """
    first = norm.cdf(0.5 / noise - epsilon * noise)
    return float(first - math.exp(epsilon + norm.logcdf(-0.5 / noise - epsilon * noise)))


def noise_for(epsilon: float, delta: float) -> float:
    """Return the least noise, relative to the sensitivity, that is :math:`(\\epsilon, \\delta)`-private.

    Raises:
        ValueError: If ``epsilon`` is not positive, or ``delta`` is not between 0 and 1.

    Example:
        >>> round(noise_for(epsilon=1.0, delta=1e-5), 2)
        3.73
    """
    check_budget(epsilon, delta)
    if delta_of_noise(_LEAST_NOISE, epsilon) <= delta:
        return _LEAST_NOISE
    if delta_of_noise(_MOST_NOISE, epsilon) > delta:
        raise ValueError(
            f"epsilon: {epsilon:g} is too small with a delta of {delta:g}; nothing could be told from noise"
        )
    found = brentq(
        lambda log: delta_of_noise(math.exp(log), epsilon) - delta, math.log(_LEAST_NOISE), math.log(_MOST_NOISE)
    )
    return math.exp(found) * (1.0 + 1e-9)


def epsilon_of_noise(noise: float, delta: float) -> float:
    """Return the least :math:`\\epsilon` of noise at a :math:`\\delta`; see :func:`noise_for`."""
    if delta_of_noise(noise, 0.0) <= delta:
        return 0.0
    highest = 1.0
    while delta_of_noise(noise, highest) > delta:
        highest *= 2.0
    return float(brentq(lambda epsilon: delta_of_noise(noise, epsilon) - delta, 0.0, highest))


def check_budget(epsilon: float, delta: float) -> None:
    """Check that a privacy budget means something."""
    if not (math.isfinite(epsilon) and epsilon > 0.0):
        raise ValueError(f"epsilon: expected a positive number, got {epsilon!r:.60}")
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta: expected a number between 0 and 1, less than one over the rows, got {delta!r:.60}")
