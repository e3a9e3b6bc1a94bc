"""The mixture of the densities of several orders of the columns, chosen and weighed by held-out rows."""

import numpy as np
from scipy.special import logsumexp

from arcsm.estimators.column_types import Array

_STEPS, _TOLERANCE = 1_000, 1e-6  # of expectation maximisation
_ROUGH_TOLERANCE = 1e-2  # while orders are compared
_PRIOR_ROWS = 1.0  # added to those that each order has, so that none gets the weight zero


def mixture_weights(log_densities: Array, tolerance: float = _TOLERANCE) -> Array:
    """Return the weights of orders ``(K,)`` with which the mixture gives rows most density; they sum to one.

    Arguments:
        log_densities: Of ``N`` rows in each order, ``(N, K)`` in nats.
        tolerance: Change of all weights at which the iterations end.

    Example:
        >>> mixture_weights(np.log([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]])).round(2)
        array([0.6, 0.4])
    """
    rows, orders = log_densities.shape
    weights = np.full(orders, 1.0 / orders)
    for _ in range(_STEPS):  # expectation maximisation, Dempster, Laird and Rubin (1977)
        terms = log_densities + np.log(weights)
        shares = np.exp(terms - logsumexp(terms, axis=1, keepdims=True)).sum(0)
        before, weights = weights, (shares + _PRIOR_ROWS) / (rows + orders * _PRIOR_ROWS)
        if np.abs(weights - before).max() < tolerance:
            break
    return weights  # type: ignore[no-any-return]


def choose_orders(log_densities: Array, count: int) -> tuple[list[int], Array]:
    """Return the indices of at most ``count`` orders, and their weights, such that the mixture gives rows most density.

    Starting with the best order, the one that helps most is added each time.

    Arguments:
        log_densities: Of ``N`` rows in each of the candidates, ``(N, K)`` in nats.
    """
    chosen = [int(log_densities.mean(0).argmax())]
    while len(chosen) < min(count, log_densities.shape[1]):
        others = [k for k in range(log_densities.shape[1]) if k not in chosen]
        gains = [_mean_log_density(log_densities[:, [*chosen, k]]) for k in others]
        chosen.append(others[int(np.argmax(gains))])
    return chosen, mixture_weights(log_densities[:, chosen])


def _mean_log_density(log_densities: Array) -> float:
    return float(logsumexp(log_densities + np.log(mixture_weights(log_densities, _ROUGH_TOLERANCE)), axis=1).mean())
