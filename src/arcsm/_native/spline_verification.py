"""A check of the compiled code of splines; see :mod:`arcsm._native.verification`."""

import ctypes

import numpy as np

from arcsm._native.comparison import RELATIVE_TOLERANCE, Array, Memory, address, addresses, random_arrays
from arcsm._native.interface import SplineNetwork

_BINS, _BOUND, _SHARE, _SLOPE, _OFFSET, _SCALES = 3, 2.0, 0.01, 0.02, 0.5, (0.1, 5.0)


def is_spline_right(code: ctypes.CDLL) -> bool:
    """Return whether projections, values, slopes and inverse values agree with the formulas in double precision."""
    points, parameters = int(code.vector_step()) + 3, 3 * _BINS + 1
    sizes = [(points, 4), (points,), (4, 4), (4,), (3 * _BINS + 3, 4), (3 * _BINS + 3,)]
    context, z, *weights = random_arrays(sizes)
    z *= 2.0
    units = (ctypes.c_long * 3)(4, 4, 3 * _BINS + 3)
    head = SplineNetwork(
        _BINS, _BOUND, 2, units, addresses(weights[0::2]), addresses(weights[1::2]), _SHARE, _SLOPE, _OFFSET, *_SCALES
    )
    count, bins = ctypes.c_long(points), ctypes.c_long(_BINS)
    found = np.zeros((points, parameters), np.float32)
    memory = Memory(code, code.spline_workspace_bytes(ctypes.byref(head), count))
    code.spline_project(ctypes.byref(head), count, address(context), ctypes.c_long(4), address(found), memory.address)
    expected = _projections(*(array.astype(np.float64) for array in (context, *weights)))
    value, log_slope, back, unused = (np.zeros_like(z) for _ in range(4))
    memory = Memory(code, code.spline_values_workspace_bytes(bins, count))
    for at, inverse, *out in ((z, 0, value, log_slope), (value, 1, back, unused)):
        code.spline_values(
            bins, ctypes.c_float(_BOUND), count, address(found), address(at), ctypes.c_int(inverse),
            *map(address, out), memory.address,
        )  # fmt: skip
    truth = _values(expected, z.astype(np.float64))
    pairs = (found, expected), (value, truth[0]), (log_slope, truth[1]), (back, z)
    return all(np.allclose(ours, its, 10.0 * RELATIVE_TOLERANCE, 10.0 * RELATIVE_TOLERANCE) for ours, its in pairs)


def _projections(context: Array, weight: Array, bias: Array, last_weight: Array, last_bias: Array) -> Array:
    h = context @ weight.T + bias
    h = context + h / (1.0 + np.exp(-h))
    raw = h @ last_weight.T + last_bias
    scale = np.minimum(_SCALES[0] + np.exp(raw[:, 1]), _SCALES[1])
    ends = []
    for part in (raw[:, 2 : 2 + _BINS], raw[:, 2 + _BINS : 2 + 2 * _BINS]):
        shares = np.exp(part) / np.exp(part).sum(1, keepdims=True)
        shares = _SHARE + (1.0 - _SHARE * _BINS) * shares
        ends.append(_BOUND * (2.0 * shares.cumsum(1)[:, :-1] - 1.0))
    slopes = _SLOPE + np.log1p(np.exp(raw[:, 2 + 2 * _BINS :] + _OFFSET))
    return np.hstack([raw[:, :1], np.log(scale)[:, None], *ends, slopes])


def _values(projection: Array, z: Array) -> tuple[Array, Array]:
    """Return splines at points, and their log slopes."""
    values, log_slopes = [], []
    for one, at in zip(projection, z, strict=True):
        inner = _BINS - 1
        x = np.concatenate([[-_BOUND], one[2 : 2 + inner], [_BOUND]])
        y = np.concatenate([[-_BOUND], one[2 + inner : 2 + 2 * inner], [_BOUND]])
        slopes = one[2 + 2 * inner :]
        if abs(at) >= _BOUND:
            slope, end = (slopes[0], -_BOUND) if at < 0.0 else (slopes[-1], _BOUND)
            values.append(end + slope * (at - end))
            log_slopes.append(np.log(slope))
            continue
        k = int((at >= x[1:-1]).sum())
        xi, delta = (at - x[k]) / (x[k + 1] - x[k]), (y[k + 1] - y[k]) / (x[k + 1] - x[k])
        first, last, rest = slopes[k], slopes[k + 1], 1.0 - xi
        d = delta + (first + last - 2.0 * delta) * xi * rest
        values.append(y[k] + (y[k + 1] - y[k]) * xi * (delta * xi + first * rest) / d)
        log_slopes.append(np.log(delta**2 * (last * xi**2 + 2.0 * delta * xi * rest + first * rest**2) / d**2))
    return np.array(values), np.array(log_slopes)
