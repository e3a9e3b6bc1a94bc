"""Check the numbers of a compiled library once, since a compiler and its flags may be wrong without an error.

Each function is compared with the same formula in double precision, and its gradients with a central difference along
a random direction. Torch takes no part, so the check runs in any mode of torch. It takes about a millisecond.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcsm._native.interface import Shape

Array = NDArray[Any]

_RELATIVE_TOLERANCE = 1e-4  # rounding in single precision stays below 1e-5
_STEP = 1e-5  # of the central differences


def first_wrong_result(code: ctypes.CDLL) -> str | None:
    """Return the name of the first function whose numbers are wrong, or ``None`` if all are right."""
    with np.errstate(all="ignore"):  # wrong code may return anything
        return next((name for name, is_right in _CHECKS.items() if not is_right(code)), None)


def _is_score_matching_right(code: ctypes.CDLL) -> bool:
    points, units = int(code.vector_step()) + 3, 5  # a full tile and a part of one
    sizes = [(points, 2), (points, 3), (points, 1), (6, points), *[(units, units), (units,)] * 3, (1, units), (1,)]
    context, features, slopes, coefficients, *parameters = arrays = _random(sizes)
    layers = (ctypes.c_long * 3)(units, units, units)
    shape = Shape(5, 2, 1, 3, layers, True, True, code.vector_step())
    workspace = _Memory(code, code.score_matching_workspace_bytes(ctypes.byref(shape)))
    by_context, by_parameters = np.zeros_like(context), [np.zeros_like(p) for p in parameters]
    loss = code.score_matching_forward_backward(
        ctypes.byref(shape),
        ctypes.c_long(points),
        *map(_address, (context, features, slopes, coefficients)),
        ctypes.c_long(points),
        *map(_addresses, (parameters[0::2], parameters[1::2], by_parameters[0::2], by_parameters[1::2])),
        _address(by_context),
        workspace.address,
    )
    return _agree(_score_matching_loss, arrays, loss, [by_context, None, None, None, *by_parameters])


def _score_matching_loss(
    context: Array, features: Array, slopes: Array, coefficients: Array, *parameters: Array
) -> float:
    """Return the loss of score_matching.c for three hidden layers with residual connections."""
    h = np.hstack([context, features])
    dh = np.hstack([np.zeros((len(h), h.shape[1] - slopes.shape[1])), slopes])
    *hidden, last, output = zip(parameters[0::2], parameters[1::2], strict=True)
    for number, (weight, bias) in enumerate(hidden):
        z, dz = h @ weight.T + bias, dh @ weight.T
        gate = 1.0 / (1.0 + np.exp(-z))
        below, d_below = (h, dh) if number else (0.0, 0.0)
        h, dh = z * gate + below, (gate + z * gate * (1.0 - gate)) * dz + d_below
    gate = 1.0 / (1.0 + np.exp(-(h @ last[0].T + last[1])))
    h, dh = gate - 0.5, gate * (1.0 - gate) * (dh @ last[0].T)
    correction, slope = (h @ output[0].T + output[1])[:, 0], (dh @ output[0].T)[:, 0]
    gain, base_score, weight, linear, correction_weight, slope_weight = coefficients
    score = base_score + gain * correction
    each = weight * score * (0.5 * score + linear) + correction_weight * correction + slope_weight * slope
    return float(each.sum())


def _is_latent_chain_right(code: ctypes.CDLL) -> bool:
    rows, latents, units = 3, 4, 5
    sizes = [(rows, latents, units), (rows, latents), (latents, units), (latents, latents, units), (latents, units)]
    fixed, noise, *weights = arrays = _random(sizes)
    counts = tuple(map(ctypes.c_long, (rows, latents, units)))
    hidden = _Memory(code, code.latent_chain_hidden_bytes(*counts))
    workspace = _Memory(code, code.latent_chain_workspace_bytes(*counts[1:]))
    u, mean, variance, *gradients = map(np.zeros_like, (noise, noise, noise, *arrays))
    ends = hidden.address, workspace.address
    inputs = *counts, _addresses(weights)
    code.latent_chain_forward(*inputs, *map(_address, (fixed, noise, u)), *ends)
    by_arrays = *map(_address, gradients[:2]), _addresses(gradients[2:])
    code.latent_chain_backward(*inputs, *map(_address, (noise, u, u)), *by_arrays, *ends)
    nodes, node_weights = np.array([-1.0, 1.0], np.float32), np.array([0.5, 0.5], np.float32)
    quadrature = ctypes.c_long(2), *map(_address, (nodes, node_weights))
    results = *map(_address, (mean, variance)), workspace.address
    code.latent_chain_moments(*inputs, *map(_address, (fixed, u)), *quadrature, *results)
    exact = [array.astype(np.float64) for array in arrays]
    values = [_next_latents(exact[0], u, np.full_like(u, node), *exact[2:]) for node in (-1.0, 1.0)]
    pairs = (u, _latents(*exact)), (mean, np.mean(values, 0)), (variance, np.var(values, 0))
    right = all(np.allclose(ours, expected, _RELATIVE_TOLERANCE, 1e-5) for ours, expected in pairs)
    loss = float((u.astype(np.float64) ** 2).sum() / 2.0)
    return right and _agree(lambda *given: float((_latents(*given) ** 2).sum() / 2.0), arrays, loss, gradients)


def _latents(fixed: Array, noise: Array, *weights: Array) -> Array:
    u = np.zeros_like(noise)
    for d in range(noise.shape[1]):
        u[:, d] = _next_latents(fixed, u, noise, *weights)[:, d]
    return u


def _next_latents(
    fixed: Array, u: Array, noise: Array, noise_weight: Array, latent_weight: Array, output_weight: Array
) -> Array:
    """Return each latent given the earlier ones in ``u`` and its noise, by the formula of latent_chain.c."""
    earlier = np.tril(np.ones((u.shape[1], u.shape[1])), -1)
    from_earlier = np.einsum("nj,dj,dju->ndu", u, earlier, latent_weight)
    hidden = np.tanh(fixed + noise[..., None] * noise_weight + from_earlier)
    return noise + (hidden * output_weight).sum(-1)


def _agree(
    function: Callable[..., float], arrays: Sequence[Array], value: float, gradients: Sequence[Array | None]
) -> bool:
    """Return whether a value and its gradients with respect to the arrays, if any, are those of the function."""
    exact, slope, above, below = [array.astype(np.float64) for array in arrays], 0.0, [], []
    for array, gradient, direction in zip(exact, gradients, _random([a.shape for a in arrays], seed=1), strict=True):
        step = np.zeros_like(array) if gradient is None else _STEP * direction.astype(np.float64)
        slope += 0.0 if gradient is None else float((gradient.astype(np.float64) * direction).sum())
        above.append(array + step)
        below.append(array - step)
    difference = (function(*above) - function(*below)) / (2.0 * _STEP)
    pairs = (value, function(*exact)), (slope, difference)
    return all(math.isclose(*pair, rel_tol=_RELATIVE_TOLERANCE) for pair in pairs)


def _random(sizes: Sequence[tuple[int, ...]], seed: int = 0) -> list[Array]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(size, np.float32) for size in sizes]


class _Memory:
    """Aligned memory for C."""

    def __init__(self, code: ctypes.CDLL, size: int) -> None:
        alignment = int(code.vector_alignment())
        self._bytes = np.zeros(size + alignment, np.uint8)
        self.address = ctypes.c_void_p(self._bytes.ctypes.data + -self._bytes.ctypes.data % alignment)


def _address(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _addresses(arrays: Sequence[Array]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*map(_address, arrays))


_CHECKS = {"score_matching": _is_score_matching_right, "latent_chain": _is_latent_chain_right}
